"""From noise to clean tokens: the update rules, without a model and without drawing anything.

A sampler serves one AR step. Whoever drives it starts from standard normal noise, asks the model at
`timesteps[0]`, `timesteps[1]`, ..., and hands each (guided) prediction to `step`:

    sampler = make_sampler(config, schedule, prediction_type, num_steps)
    for index, timestep in enumerate(sampler.timesteps):
        noised = sampler.step(index, noised, model(noised, timestep), noise[index])

DDPM and DDIM share one form: the prediction becomes x_0, and the next state is a x_0 + b x_t + c ε with
factors worked out in float64. The order of operations is the reference's, so that its recorded trajectories
are met to the last bits even where predictions are replayed, and rounding is not corrected by a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig
from causalfusion.diffusion.multistep import MultistepSampler
from causalfusion.diffusion.prediction import clean_coefficients
from causalfusion.diffusion.schedule import NoiseSchedule, Table
from causalfusion.errors import UserError


class Sampler(Protocol):
    @property
    def timesteps(self) -> list[int]:
        """What the model is told at each step, noisiest first."""
        ...

    @property
    def needs_noise(self) -> bool:
        """Whether `step` uses noise at all."""
        ...

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        """The state after step `index`, clean tokens after the last, in the dtype and shape of `noised`.

        `noise` is standard normal, shaped like `noised`; None where `needs_noise` is False.
        """
        ...


def make_sampler(
    config: SampleConfig, schedule: NoiseSchedule, prediction_type: PredictionType, num_steps: int
) -> Sampler:
    """A fresh sampler for one AR step of `num_steps` diffusion steps, evenly spread over the schedule."""
    respaced = schedule.respace(num_steps)
    if config.sampler == "ddpm":
        return ddpm(config, respaced, prediction_type)
    if config.sampler == "ddim":
        return ddim(config, respaced, prediction_type)
    return MultistepSampler(config.sampler, schedule, prediction_type, num_steps)


@dataclass(frozen=True)
class LinearSampler:
    """Next state = of_clean x_0 + of_noised x_t + of_noise ε; all factors by step, noisiest first."""

    timesteps: list[int]
    clean_of_noised: list[float]
    clean_of_prediction: list[float]
    """x_0 = clean_of_noised x_t + clean_of_prediction prediction."""
    of_clean: list[float]
    of_noised: list[float]
    of_noise: list[float]

    @property
    def needs_noise(self) -> bool:
        return any(self.of_noise)

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        prediction = prediction.to(noised.dtype)
        clean = self.clean_of_noised[index] * noised + self.clean_of_prediction[index] * prediction
        mean = self.of_clean[index] * clean + self.of_noised[index] * noised
        if self.of_noise[index] == 0:
            return mean
        if noise is None:
            raise ValueError(f"noise is None at step {index}; expected a tensor, as needs_noise is True")
        return mean + self.of_noise[index] * noise


def ddpm(config: SampleConfig, schedule: NoiseSchedule, prediction_type: PredictionType) -> LinearSampler:
    """Ancestral sampling through every level of a (respaced) schedule; DDPM algorithm 2.

    The mean of q(x_{t-1} | x_t, x_0) at the predicted x_0, plus noise of the chosen variance; none after the
    last step.
    """
    noise_std = np.exp(0.5 * schedule.log_variance(config.variance))
    noise_std[0] = 0.0
    return _noisiest_first(
        schedule,
        prediction_type,
        of_clean=schedule.posterior_mean_coef1,
        of_noised=schedule.posterior_mean_coef2,
        of_noise=config.temperature * noise_std,
    )


def ddim(config: SampleConfig, schedule: NoiseSchedule, prediction_type: PredictionType) -> LinearSampler:
    """DDIM (Song et al., 2010.02502), equation 12, through every level of a (respaced) schedule.

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
        of_clean=np.sqrt(schedule.alphas_cumprod_prev) - of_noised * schedule.sqrt_alphas_cumprod,
        of_noised=of_noised,
        of_noise=config.temperature * np.sqrt(variance),
    )


def _noisiest_first(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    *,
    of_clean: Table,
    of_noised: Table,
    of_noise: Table,
) -> LinearSampler:
    """Tables run from the cleanest level up; a sampler goes down."""
    clean_of_noised, clean_of_prediction = clean_coefficients(schedule, prediction_type)
    return LinearSampler(
        timesteps=schedule.timestep_map[::-1].tolist(),
        clean_of_noised=clean_of_noised[::-1].tolist(),
        clean_of_prediction=clean_of_prediction[::-1].tolist(),
        of_clean=of_clean[::-1].tolist(),
        of_noised=of_noised[::-1].tolist(),
        of_noise=of_noise[::-1].tolist(),
    )
