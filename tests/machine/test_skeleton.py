from dataclasses import replace

import torch

from causalfusion.config import ModelConfig
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.transformer import Transformer

CONFIG = ModelConfig(
    num_classes=3, token_dim=4, grid_height=2, grid_width=2, hidden_size=16, depth=2, num_heads=2
)


def test_a_skeleton_has_the_networks_shapes_and_no_memory() -> None:
    for positions in ("learnable", "sincos", "rope"):
        config = replace(CONFIG, position_embedding=positions)
        with skeleton():
            empty = Transformer(config)
        whole = Transformer(config)
        assert all(value.is_meta for value in [*empty.parameters(), *empty.buffers()])
        shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (empty, whole)]
        assert shapes[0] == shapes[1]


def test_draws_are_left_out_inside_alone() -> None:
    before = torch.get_rng_state()
    with skeleton():
        layer = torch.nn.Linear(3, 2)
    assert layer.weight.is_meta and torch.equal(torch.get_rng_state(), before)
    assert torch.nn.Linear(3, 2).weight.std() > 0
