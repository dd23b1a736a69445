"""Samplers of rectified flow. `grid` are levels from 1 down, one more than there are steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.samplers import LinearSampler

if TYPE_CHECKING:
    from causalfusion.diffusion.flow import RectifiedFlow


def euler(process: RectifiedFlow, grid: list[float]) -> LinearSampler:
    """x' = x + (l' - l) v. With v = (x - x_0) / l that is a mixture of x_0 and x, for any prediction."""
    kept = [after / before for before, after in pairwise(grid)]
    return _linear(process, grid, [1 - share for share in kept], kept, [0.0] * len(kept))


def sde(config: SampleConfig, process: RectifiedFlow, grid: list[float]) -> LinearSampler:
    """Euler-Maruyama of the reverse SDE with diffusion w(l) = l (SiT, 2401.08740), down to the level where
    `grid` ends; from there one more step of that size to clean data, without noise."""
    if len(grid) == 1:  # from pure noise in one step, where the drift means nothing
        return euler(process, [*grid, 0.0])
    of_clean, of_noised, of_noise = [], [], []
    for before, after in pairwise([*grid, 0.0]):
        size = before - after
        # velocity towards the data, (x_0 - x) / l, plus w times the score, -(x - (1 - l) x_0) / l²
        of_clean.append(size * (1 / before + (1 - before) / before))
        of_noised.append(1 - size * 2 / before)
        of_noise.append(config.temperature * (2 * before * size) ** 0.5 * (after > 0))
    return _linear(process, [*grid, 0.0], of_clean, of_noised, of_noise)


def _linear(
    process: RectifiedFlow,
    grid: list[float],
    of_clean: list[float],
    of_noised: list[float],
    of_noise: list[float],
) -> LinearSampler:
    levels = grid[:-1]
    factors = process.factors(levels)
    return LinearSampler(
        timesteps=process.told(levels),
        shares=levels,
        clean_of_noised=[a for a, _ in factors],
        clean_of_prediction=[b for _, b in factors],
        of_clean=of_clean,
        of_noised=of_noised,
        of_noise=of_noise,
    )


def heun(process: RectifiedFlow, grid: list[float]) -> HeunSampler:
    """The trapezoid rule: a step of Euler, then again with the mean of the slopes at both of its ends. At
    level 0 only a model of the velocity has a slope; for others the last step is Euler's."""
    calls: list[float] = []
    for before, after in pairwise(grid):
        corrected = after > 0 or process.prediction_type == "velocity"
        calls += [before, after] if corrected else [before]
    return HeunSampler(process.told(calls), calls, grid, process)


@dataclass
class HeunSampler:
    """A `Sampler` with memory: calls come in order, from a fresh instance for every AR step."""

    timesteps: list[float]
    shares: list[float]
    grid: list[float]
    process: RectifiedFlow
    start: Tensor | None = None
    """The state and the slope with which the step in progress began."""
    slope: Tensor | None = None
    needs_noise: bool = False

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        before, after = self.grid[index // 2 : index // 2 + 2]
        if index % 2 == 0:
            self.start, self.slope = noised, self._velocity(noised, prediction, before)
            return noised + (after - before) * self.slope
        assert self.start is not None and self.slope is not None, "calls come in order"
        slope = (self.slope + self._velocity(noised, prediction, after)) / 2
        return self.start + (after - before) * slope

    def _velocity(self, noised: Tensor, prediction: Tensor, level: float) -> Tensor:
        prediction = prediction.to(noised.dtype)
        if self.process.prediction_type == "velocity":
            return prediction
        ((of_noised, of_prediction),) = self.process.factors([level])
        return (noised - of_noised * noised - of_prediction * prediction) / level
