"""The outputs of layers are those that the model itself computes with."""

import pytest
import torch

from causalfusion.config import HeadConfig, ModelConfig
from causalfusion.model.layers import layer_outputs, num_layers, readable
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, class_segment, image_segment


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        hidden_size=16, depth=3, num_heads=2, num_class_tokens=2, num_classes=3, token_dim=4,
        grid_height=2, grid_width=2, head=HeadConfig(),
    )  # fmt: skip
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def sequence():
    tokens = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]])
    image = image_segment("noised", tokens, torch.ones(1, 4).long(), places, torch.full((2, 1), 300))
    return PackedSequence((class_segment(torch.tensor([0, 3]), 2), image))


def test_the_last_layer_behind_its_norm_is_what_the_model_predicts_from(model, sequence):
    found = layer_outputs(model, readable(sequence), [3])
    predicted = model.image_out(model.norm_out(found[3][1]))
    assert torch.allclose(predicted, model(sequence).image, atol=1e-5)


def test_each_layer_is_the_block_applied_to_the_one_before(model, sequence):
    found = layer_outputs(model, readable(sequence), range(4))
    assert sorted(found) == [0, 1, 2, 3] and num_layers(model.config) == 3
    attend = model._attend(sequence, "dense")
    for layer in range(3):
        before = torch.cat(found[layer], dim=1)
        assert torch.allclose(
            model.blocks[layer](before, attend, layer), torch.cat(found[layer + 1], 1), atol=1e-5
        )


def test_the_pass_ends_behind_the_last_layer_that_is_wanted(model, sequence, monkeypatch):
    def computed(*_, **__):
        raise AssertionError

    monkeypatch.setattr(model.blocks[2], "forward", computed)
    assert list(layer_outputs(model, readable(sequence), [1])) == [1]
    assert not model.blocks[0]._forward_hooks and not model.blocks[0]._forward_pre_hooks, (
        "hooks are taken away"
    )
