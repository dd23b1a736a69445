"""Samplers of the reverse SDE of a flow: x moves along drift = velocity + w score, both towards the data, and
noise of variance 2 w is added (SiT, 2401.08740, sections 2.3 and 3.3). w is free, and chosen by `sde_noise`.

The noisy steps go down to a level from which one more step leads to clean data, without noise. `grid` are the
levels at which noisy steps begin and end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.flow_samplers import euler, linear
from causalfusion.diffusion.samplers import Sampler, given
from causalfusion.errors import UserError

if TYPE_CHECKING:
    from causalfusion.diffusion.flow import Flow


def noise_rate(config: SampleConfig, process: Flow, level: float) -> float:
    """w at a level."""
    norm, time = config.sde_norm, 1 - level
    signal, scale, signal_slope, noise_slope = process.at(level)
    if config.sde_noise == "sigma":
        return norm * scale
    if config.sde_noise == "linear":
        return norm * level
    if config.sde_noise == "decreasing":
        return 0.25 * (norm * math.cos(math.pi * time) + 1) ** 2
    if config.sde_noise == "increasing_decreasing":
        return norm * math.sin(math.pi * time) ** 2
    if config.sde_noise == "constant":
        return norm
    return norm * (scale * noise_slope - scale**2 * signal_slope / signal)


def score_factors(process: Flow, level: float) -> tuple[float, float]:
    """(a, b) with score = a x + b x_0 at a level above 0."""
    signal, scale, *_ = process.at(level)
    return -1 / scale**2, signal / scale**2


def drift_factors(config: SampleConfig, process: Flow, level: float) -> tuple[float, float]:
    """(a, b) with drift = a x + b x_0 at a level above 0."""
    of_noised, of_clean = process.slope_factors(level)
    score_of_noised, score_of_clean = score_factors(process, level)
    rate = noise_rate(config, process, level)
    return rate * score_of_noised - of_noised, rate * score_of_clean - of_clean


def last_factors(config: SampleConfig, process: Flow, level: float) -> tuple[float, float]:
    """(a, b) with clean data = a x + b x_0 by the last step from a level."""
    if config.last_step_rule == "tweedie":
        return 0.0, 1.0
    if config.last_step_rule == "euler":
        of_noised, of_clean = process.slope_factors(level)
        return 1 - level * of_noised, -level * of_clean
    of_noised, of_clean = drift_factors(config, process, level)
    return 1 + level * of_noised, level * of_clean


def sde(config: SampleConfig, process: Flow, grid: list[float]) -> Sampler:
    """Euler-Maruyama, then the last step."""
    if len(grid) == 1:  # from pure noise in one step, where the drift means nothing
        return euler(process, [*grid, 0.0])
    of_clean, of_noised, of_noise = [], [], []
    for before, after in pairwise(grid):
        size = before - after
        drift_of_noised, drift_of_clean = drift_factors(config, process, before)
        of_clean.append(size * drift_of_clean)
        of_noised.append(1 + size * drift_of_noised)
        of_noise.append(config.temperature * (2 * noise_rate(config, process, before) * size) ** 0.5)
    if config.last_step_rule == "none":
        return linear(process, grid, of_clean, of_noised, of_noise)
    last_of_noised, last_of_clean = last_factors(config, process, grid[-1])
    factors = [*of_clean, last_of_clean], [*of_noised, last_of_noised], [*of_noise, 0.0]
    return linear(process, [*grid, 0.0], *factors)


def sde_heun(config: SampleConfig, process: Flow, grid: list[float]) -> Sampler:
    """The trapezoid rule for the drift, after the noise of each step is added; two calls a step. Raises
    UserError for steps to level 0, where there is no drift."""
    if config.last_step_rule == "none":
        raise UserError(
            "sample.last_step_rule is none; expected mean, euler or tweedie, for the sampler sde_heun"
        )
    if len(grid) == 1:
        return euler(process, [*grid, 0.0])
    levels = [level for step in pairwise(grid) for level in step] + grid[-1:]
    noise = [
        config.temperature * (2 * noise_rate(config, process, before) * (before - after)) ** 0.5
        for before, after in pairwise(grid)
    ]
    last = last_factors(config, process, grid[-1])
    drift = [drift_factors(config, process, level) for level in levels]
    return SdeHeunSampler(process.told(levels), levels, process.factors(levels), drift, noise, last)


@dataclass
class SdeHeunSampler:
    """A `Sampler` with memory: calls come in order, from a fresh instance for every AR step."""

    timesteps: list[float]
    shares: list[float]
    clean: list[tuple[float, float]]
    """(a, b) by call, with x_0 = a x + b prediction."""
    drift: list[tuple[float, float]]
    """(a, b) by call, with drift = a x + b x_0."""
    noise: list[float]
    """Factor on the noise of each step."""
    last: tuple[float, float]
    """(a, b) of the last call, with clean data = a x + b x_0."""
    start: Tensor | None = None
    """The state with noise, and the drift, with which the step in progress began."""
    slope: Tensor | None = None
    calls_per_step: int = 2

    @property
    def needs_noise(self) -> bool:
        return any(self.noise)

    def from_call(self, first: int) -> SdeHeunSampler:
        calls = self.timesteps[first:], self.shares[first:], self.clean[first:], self.drift[first:]
        return SdeHeunSampler(*calls, self.noise[first // 2 :], self.last)

    def enter(self, index: int, noised: Tensor, noise: Tensor | None) -> Tensor:
        step, second = divmod(index, 2)
        if second or step == len(self.noise) or not self.noise[step]:
            return noised
        return noised + self.noise[step] * given(noise, index)

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        of_noised, of_prediction = self.clean[index]
        clean = of_noised * noised + of_prediction * prediction.to(noised.dtype)
        step, second = divmod(index, 2)
        of_noised, of_clean = self.last if step == len(self.noise) else self.drift[index]
        moved = of_noised * noised + of_clean * clean
        if step == len(self.noise):
            return moved
        size = self.shares[2 * step] - self.shares[2 * step + 1]
        if not second:
            self.start, self.slope = noised, moved
            return noised + size * moved
        assert self.start is not None and self.slope is not None, "calls come in order"
        return self.start + size * (self.slope + moved) / 2
