"""Training with per-token heads and bidirectional contexts: exact under accumulation and resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from causalfusion.machine.processes import World
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.feed import open_training_data
from causalfusion.train.run import train
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
HEAD = {"kind": "per_token", "depth": 2, "width": 24}
LEVELS = {"timesteps": "per_token", "timesteps_per_ar_step": 2}
SETTINGS = {
    "asking": {"model": {"head": HEAD}, "factorization": LEVELS},
    "next": {
        "model": {"head": {**HEAD, "ask": "previous"}, "mlp": "swiglu", "num_kv_heads": 1},
        "factorization": {**LEVELS, "distribution": "fixed", "num_ar_steps": 0, "order": "raster"},
        "sample": {"order": "raster", "num_ar_steps": 0},
    },
    "masked": {
        "model": {
            "head": HEAD, "context": "bidirectional", "encoder": {"depth": 1},
            "dropout": 0.1, "attention_dropout": 0.1, "position_embedding": "learnable",
        },
        "factorization": {**LEVELS, "distribution": "mask_ratio"},
        "diffusion": {"variance": "learned_range", "beta_schedule": "cosine"},
    },
}  # fmt: skip


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints_of(run)[-1] / "raw.safetensors")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_is_the_same_run(tiny_run, name):
    """Dropout included: what it zeroes is a function of the seed and the train step."""
    found = []
    for out, stops in (("whole", [96]), ("part", [48, 96])):
        for images in stops:
            config = tiny_run(out, train={"images": images, "grad_accumulation": 2}, **SETTINGS[name])
            train(config, device="cpu", show_progress=False)
        found.append(weights_of(Path(config.out)))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert value.equal(found[1][key]), key
    moved = [key for key, value in found[0].items() if "head.blocks" in key and float(value.abs().sum())]
    assert moved, "the head is trained"


def test_dropout_is_on_in_train_steps_alone(tiny_run):
    """The same weights and draws: other losses with dropout, and afterwards the model is as it was."""
    losses = []
    for rate in (0.0, 0.5):
        settings = {**SETTINGS["masked"], "model": {**SETTINGS["masked"]["model"], "dropout": rate}}
        config = tiny_run(train={"batch_size": 8}, **settings)
        data = open_training_data(config, ALONE)
        trainer = Trainer(data.config, ALONE)
        generator = torch.Generator().manual_seed(0)
        for parameter in trainer.model.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        losses.append(trainer.step(next(data.batches(0))).loss)
        assert not trainer.model.training
    assert losses[0] != losses[1]
