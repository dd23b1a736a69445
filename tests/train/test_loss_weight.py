"""The weights of noise levels reach the training loss, with and without text."""

from dataclasses import replace

import pytest
import torch

from causalfusion.config.recipes import load_config
from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data
from causalfusion.train.trainer import Trainer

SMALL = {"hidden_size": 16, "depth": 1, "num_heads": 2}
WORLD = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("recipe", ["digits", "shapes"])
def test_a_limit_below_every_ratio_is_a_factor(recipe):
    """With snr_limit below the least signal to noise ratio (4e-5) every level of x_0 weighs snr_limit."""
    config = load_config(recipe, model=SMALL, diffusion={"prediction_type": "sample"})
    config = replace(config, train=replace(config.train, batch_size=8, precision="float32"))
    data = open_training_data(config, WORLD)
    batch = next(data.batches(0))
    losses = []
    for kind in ("none", "min_snr"):
        diffusion = replace(data.config.diffusion, loss_weight=kind, snr_limit=1e-5)
        trainer = Trainer(replace(data.config, diffusion=diffusion), WORLD, data.tokenizer)
        trainer.step(batch)
        losses.append(trainer.progress.pending_losses[0])
    assert losses[1][0] == pytest.approx(1e-5 * losses[0][0], rel=1e-4)
    assert losses[1][1] == losses[0][1], "the text is not weighted"
    assert losses[0][0] > 0
