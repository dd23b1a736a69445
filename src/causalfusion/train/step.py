"""One training step's random draws and its loss (PAPER section 4); pure functions.

Shape letters: B images, L image tokens, R noised copies of every AR step, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causalfusion.config import FactorizationConfig, ModelConfig, PredictionType
from causalfusion.diffusion.prediction import add_noise, training_target
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.factorization import Plan, loss_weights, plan_batch
from causalfusion.losses import squared_error, weighted_mean
from causalfusion.model.attention import AttentionBackend
from causalfusion.rng import derive_generator
from causalfusion.sequence import pack_training


@dataclass(frozen=True)
class TokenBatch:
    """What the feed gives: this process's share of a train step's images."""

    tokens: Tensor
    """(B, L, P) clean, raster order."""
    labels: Tensor
    """(B,) int64."""
    sample_indices: Tensor
    """(B,) int64 places in the sample stream."""


@dataclass(frozen=True)
class Draws:
    """All that is random in a training step."""

    plan: Plan
    timesteps: Tensor
    """int64 noise levels: (B, 1), one for the whole image, or (B, R*L), one per noised token in the plan's
    order."""
    noise: Tensor
    """(B, R, L, P) standard normal, in raster order."""
    drop_class: Tensor
    """(B,) bool: replace the class by the null class."""

    def to(self, device: torch.device) -> Draws:
        plan = Plan(self.plan.order.to(device), self.plan.ar_step.to(device))
        return Draws(plan, self.timesteps.to(device), self.noise.to(device), self.drop_class.to(device))

    def slice(self, rows: slice) -> Draws:
        """The draws of some of the images, for a micro-batch."""
        ar_step = self.plan.ar_step if len(self.plan.ar_step) == 1 else self.plan.ar_step[rows]
        plan = Plan(self.plan.order[rows], ar_step)
        return Draws(plan, self.timesteps[rows], self.noise[rows], self.drop_class[rows])


def draw(
    factorization: FactorizationConfig,
    model: ModelConfig,
    num_timesteps: int,
    class_dropout: float,
    *,
    seed: int,
    split_index: int,
    sample_indices: Sequence[int],
) -> Draws:
    """The draws for these places of the sample stream: functions of (seed, place), and of `split_index`
    where the split is shared; so they are the same whichever process or resumed run makes them."""
    plan = plan_batch(
        factorization, model.grid_height, model.grid_width,
        seed=seed, split_index=split_index, sample_indices=sample_indices,
    )  # fmt: skip
    num_tokens, copies = model.num_tokens, factorization.timesteps_per_ar_step
    timesteps, noise, dropped = [], [], []
    for row, index in enumerate(sample_indices):
        generator = derive_generator(seed, "step", index)
        dropped.append(torch.rand((), generator=generator) < class_dropout)
        if factorization.timesteps == "shared":
            t = torch.randint(num_timesteps, (copies, 1), generator=generator)
            t = t.expand(-1, num_tokens) if copies > 1 else t
        else:
            of_step = torch.randint(num_timesteps, (copies, num_tokens), generator=generator)
            ar_step = plan.ar_step[row if len(plan.ar_step) > 1 else 0]
            t = of_step[:, ar_step - 1]
        timesteps.append(t.reshape(-1))
        noise.append(torch.randn(copies, num_tokens, model.token_dim, generator=generator))
    return Draws(plan, torch.stack(timesteps), torch.stack(noise), torch.stack(dropped))


def token_errors(
    model: nn.Module,
    config: ModelConfig,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    tokens: Tensor,
    labels: Tensor,
    draws: Draws,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Squared errors (B, R*L, P) of clean tokens (B, L, P) in raster order, returned in the plan's order."""
    plan, copies = draws.plan, draws.noise.shape[1]
    index = plan.order[:, :, None].expand_as(tokens)
    clean = tokens.gather(1, index)
    noise = draws.noise.gather(2, index[:, None].expand(-1, copies, -1, -1)).flatten(1, 2)
    repeated = clean.repeat(1, copies, 1)
    noised = add_noise(repeated, noise, draws.timesteps, schedule)
    target = training_target(repeated, noise, draws.timesteps, schedule, prediction_type)
    labels = torch.where(draws.drop_class, config.null_label, labels)
    sequence = pack_training(labels, config.num_condition_tokens, clean, noised, plan, draws.timesteps)
    return squared_error(model(sequence, backend=backend).image, target)


def training_loss(errors: Tensor, plan: Plan, config: FactorizationConfig) -> Tensor:
    """The scalar that is minimised: the mean of the squared errors under the AR weights."""
    return weighted_mean(errors, loss_weights(plan.ar_step, config))
