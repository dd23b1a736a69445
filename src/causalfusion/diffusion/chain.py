"""DDPM's own samplers and DDIM's, through every level of a (respaced) chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig
from causalfusion.diffusion.samplers import LinearSampler, PlainEntry, Sampler, given
from causalfusion.diffusion.schedule import NoiseSchedule, Table, clean_tables
from causalfusion.diffusion.variance import log_variance, range_bounds
from causalfusion.errors import UserError

Variance = Literal["fixed_large", "fixed_small", "learned_range"]


def ddpm(
    config: SampleConfig,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    num_timesteps: int,
    variance: Variance,
) -> Sampler:
    """Ancestral sampling; DDPM algorithm 2. `num_timesteps`: of the chain before it was respaced.

    The mean of q(x_{t-1} | x_t, x_0) at the predicted x_0, plus noise of the chosen variance; none after the
    last step.
    """
    learned = variance == "learned_range"
    noise_std = np.exp(
        0.5 * schedule.log_variance("fixed_small" if variance == "fixed_small" else "fixed_large")
    )
    noise_std[0] = 0.0
    sampler = _noisiest_first(
        schedule,
        prediction_type,
        num_timesteps,
        of_clean=schedule.posterior_mean_coef1,
        of_noised=schedule.posterior_mean_coef2,
        of_noise=config.temperature * noise_std,
    )
    if not learned:
        return sampler
    low, high = range_bounds(schedule)
    return LearnedVarianceSampler(sampler, config.temperature, low[::-1].tolist(), high[::-1].tolist())


@dataclass(frozen=True)
class LearnedVarianceSampler(PlainEntry):
    """Ancestral sampling with the variances that the model predicts beside each token."""

    mean_of: LinearSampler
    temperature: float
    low: list[float]
    high: list[float]
    """ln β̃ and ln β by step, noisiest first."""

    @property
    def timesteps(self) -> list[int] | list[float]:
        return self.mean_of.timesteps

    @property
    def shares(self) -> list[float]:
        return self.mean_of.shares

    @property
    def needs_noise(self) -> bool:
        return len(self.timesteps) > 1 and self.temperature > 0

    def from_call(self, first: int) -> LearnedVarianceSampler:
        mean_of = self.mean_of.from_call(first)
        return LearnedVarianceSampler(mean_of, self.temperature, self.low[first:], self.high[first:])

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        mean = self.mean_of.mean(index, noised, prediction)
        if index == len(self.timesteps) - 1 or not self.needs_noise:
            return mean
        variance = prediction[..., noised.shape[-1] :].to(noised.dtype)
        log_var = log_variance(variance, self.low[index], self.high[index])
        return mean + self.temperature * (0.5 * log_var).exp() * given(noise, index)


def ddim(
    config: SampleConfig, schedule: NoiseSchedule, prediction_type: PredictionType, num_timesteps: int
) -> LinearSampler:
    """DDIM (Song et al., 2010.02502), equation 12.

    eta = 0 follows the probability flow; eta = 1 is DDPM with the posterior's variance (`fixed_small`).
    """
    variance = config.eta**2 * schedule.posterior_variance
    direction_squared = 1.0 - schedule.alphas_cumprod_prev - variance
    if direction_squared.min() < -1e-12:
        raise UserError(
            f"sample.eta is {config.eta}; expected at most 1: these {schedule.num_timesteps} diffusion steps "
            "would add more noise than their levels hold"
        )
    # Equation 12 has sqrt(ᾱ_{t-1}) x_0 + direction ε, with the ε that x_0 leaves of x_t.
    of_noised = np.sqrt(direction_squared.clip(min=0.0)) / schedule.sqrt_one_minus_alphas_cumprod
    return _noisiest_first(
        schedule,
        prediction_type,
        num_timesteps,
        of_clean=np.sqrt(schedule.alphas_cumprod_prev) - of_noised * schedule.sqrt_alphas_cumprod,
        of_noised=of_noised,
        of_noise=config.temperature * np.sqrt(variance),
    )


def _noisiest_first(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    num_timesteps: int,
    *,
    of_clean: Table,
    of_noised: Table,
    of_noise: Table,
) -> LinearSampler:
    """Tables run from the cleanest level up; a sampler goes down."""
    clean_of_noised, clean_of_prediction = clean_tables(schedule, prediction_type)
    timesteps: list[int] = schedule.timestep_map[::-1].tolist()
    return LinearSampler(
        timesteps=timesteps,
        shares=[timestep / num_timesteps for timestep in timesteps],
        clean_of_noised=clean_of_noised[::-1].tolist(),
        clean_of_prediction=clean_of_prediction[::-1].tolist(),
        of_clean=of_clean[::-1].tolist(),
        of_noised=of_noised[::-1].tolist(),
        of_noise=of_noise[::-1].tolist(),
    )
