"""Samplers along the velocity of a flow. `grid` are levels from 1 down, one more than there are steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from causalfusion.diffusion.samplers import LinearSampler, PlainEntry

if TYPE_CHECKING:
    from causalfusion.diffusion.flow import Flow


def euler(process: Flow, grid: list[float]) -> LinearSampler:
    """x' = x + (l' - l) v. As v is a mixture of x_0 and x for any prediction, so is x'."""
    of_clean, of_noised = [], []
    for before, after in pairwise(grid):
        slope_of_noised, slope_of_clean = process.slope_factors(before)
        of_clean.append((after - before) * slope_of_clean)
        of_noised.append(1 + (after - before) * slope_of_noised)
    return linear(process, grid, of_clean, of_noised, [0.0] * len(of_clean))


def linear(
    process: Flow,
    grid: list[float],
    of_clean: list[float],
    of_noised: list[float],
    of_noise: list[float],
) -> LinearSampler:
    """A sampler with these factors at the levels of `grid` but the last."""
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


def heun(process: Flow, grid: list[float]) -> HeunSampler:
    """The trapezoid rule: a step of Euler, then again with the mean of the slopes at both of its ends. At
    level 0 only a model of the velocity has a slope; for others the last step is Euler's."""
    calls: list[float] = []
    for before, after in pairwise(grid):
        corrected = after > 0 or process.prediction_type == "velocity"
        calls += [before, after] if corrected else [before]
    return HeunSampler(process.told(calls), calls, grid, process)


@dataclass
class HeunSampler(PlainEntry):
    """A `Sampler` with memory: calls come in order, from a fresh instance for every AR step."""

    timesteps: list[float]
    shares: list[float]
    grid: list[float]
    process: Flow
    start: Tensor | None = None
    """The state and the slope with which the step in progress began."""
    slope: Tensor | None = None
    needs_noise: bool = False
    calls_per_step: int = 2

    def from_call(self, first: int) -> HeunSampler:
        timesteps, shares = self.timesteps[first:], self.shares[first:]
        return HeunSampler(timesteps, shares, self.grid[first // 2 :], self.process)

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
        clean = of_noised * noised + of_prediction * prediction
        slope_of_noised, slope_of_clean = self.process.slope_factors(level)
        return slope_of_noised * noised + slope_of_clean * clean
