"""Blocks computed again in the backward pass: which ones, with which gradients, for how much less memory."""

import runpy
from pathlib import Path

import jobs
import pytest
import torch
from torch import nn

from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data
from causalfusion.train.trainer import Trainer

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "training_memory.py"
Kept = runpy.run_path(str(BENCHMARK))["Kept"]
DEPTH = 5


def passes(which: str, folder) -> dict:
    """Layers computed, gradients, and bytes kept for the backward pass, of one forward and backward pass."""
    config = jobs.tiny_config(folder, train={"activation_checkpointing": which}, model={"depth": DEPTH})
    data = open_training_data(config, World(0, 1, torch.device("cpu")))
    trainer = Trainer(data.config, World(0, 1, torch.device("cpu")))
    nn.init.normal_(trainer.model.image_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    computed: list[int] = []
    for layer, block in enumerate(trainer.model.blocks):
        block.norm1.register_forward_pre_hook(lambda *_, layer=layer: computed.append(layer))
    batch = next(data.batches(0))
    piece = trainer.objective.arrange(batch, trainer.objective.draw(batch, seed=0, split_index=0))
    totals, num_text = trainer._totals([piece])
    with Kept() as kept:
        loss = trainer._losses(piece, totals, num_text)
    held = kept.num_bytes
    trainer._total(loss).backward()
    return {
        "computed": computed,
        "bytes": held,
        "gradients": {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None},
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("runs")
    return {which: passes(which, folder) for which in ("none", "selective", "full")}


def test_the_chosen_blocks_are_computed_again_last_first(found):
    layers = list(range(DEPTH))
    assert found["none"]["computed"] == layers
    assert found["selective"]["computed"] == [*layers, 4, 2, 0]
    assert found["full"]["computed"] == [*layers, *layers[::-1]]


def test_gradients_are_the_same_bits(found):
    for which in ("selective", "full"):
        assert found[which]["gradients"].keys() == found["none"]["gradients"].keys()
        for name, gradient in found["none"]["gradients"].items():
            assert gradient.equal(found[which]["gradients"][name]), (which, name)
    assert all(g.abs().max() > 0 for n, g in found["none"]["gradients"].items() if "k_norm.bias" not in n)


def test_less_is_kept(found):
    none, selective, full = (found[which]["bytes"] for which in ("none", "selective", "full"))
    assert full < 0.4 * none
    assert full + 0.3 * (none - full) < selective < full + 0.5 * (none - full)
