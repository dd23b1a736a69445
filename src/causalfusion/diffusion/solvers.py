"""Multistep solvers of the probability flow as linear combinations: DPM-Solver++ (2211.01095) and UniPC
(2302.04867, B(h) = e^h - 1), both for predictions of x_0.

With λ = ln(α / σ), the flow from λ_s to λ_t = λ_s + h is

    x_t = (σ_t / σ_s) x_s + σ_t ∫ e^λ x_0(λ) dλ,

and a solver is a rule for the integral from the predictions of x_0 so far. Its weights depend on the levels
alone, and are computed in Python's floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

SolverName = Literal["dpm++", "unipc"]
_FEW_STEPS = 15
"""DPM-Solver++ of order 3 with fewer steps takes the last but one with order 2, as diffusers does."""


@dataclass(frozen=True)
class Level:
    signal: float
    """α."""
    noise: float
    """σ."""

    @property
    def half_log_snr(self) -> float:
        """λ; infinite for clean data."""
        if self.signal == 0 or self.noise == 0:
            return -math.inf if self.signal == 0 else math.inf
        return math.log(self.signal) - math.log(self.noise)


@dataclass(frozen=True)
class Combination:
    """of_state x + Σ of_clean[i] x_0[i], with the newest prediction first."""

    of_state: float
    of_clean: tuple[float, ...]

    def __call__(self, state: Tensor, clean: Sequence[Tensor]) -> Tensor:
        result = self.of_state * state
        for weight, prediction in zip(self.of_clean, clean, strict=False):
            result = result + weight * prediction
        return result


def levels_of(scales: Sequence[float], flow: bool) -> list[Level]:
    """From σ, with α = 1 - σ (`flow`), or from noise over signal, with α² + σ² = 1."""
    if flow:
        return [Level(1 - scale, scale) for scale in scales]
    signals = [1 / math.sqrt(1 + scale**2) for scale in scales]
    return [Level(signal, scale * signal) for signal, scale in zip(signals, scales, strict=True)]


def predictors(name: SolverName, levels: Sequence[Level], order: int) -> list[Combination]:
    """The step from each level to the next, of lower order at the start and at the end."""
    count = len(levels) - 1
    made = []
    for index in range(count):
        left = count - index
        of_step = min(order, index + 1)
        if name == "unipc":
            made.append(_unified(levels[index + 1], levels[: index + 1], min(of_step, left)))
            continue
        if left == 1 or (left == 2 and count < _FEW_STEPS):
            of_step = min(of_step, left)
        made.append(_taylor(levels[index + 1], levels[: index + 1], of_step))
    return made


def correctors(levels: Sequence[Level], order: int) -> list[Combination]:
    """UniPC: entry i takes the step from level i again, once x_0 is predicted at level i + 1, whose
    prediction is the first of the combination."""
    count = len(levels) - 1
    return [
        _unified(levels[index + 1], levels[: index + 1], min(order, index + 1, count - index), corrected=True)
        for index in range(count - 1)
    ]


def _ratio_and_gain(to: Level, start: Level) -> tuple[float, float, float]:
    """(σ_t / σ_s, α_t (1 - e^-h), h): the weight of the state, that of a constant x_0, and the step."""
    h = to.half_log_snr - start.half_log_snr
    return to.noise / start.noise, -to.signal * math.expm1(-h), h


def _taylor(to: Level, past: Sequence[Level], order: int) -> Combination:
    """DPM-Solver++: x_0(λ) by its Taylor polynomial with divided differences, of order 2 by the midpoint
    rule; `past` ends with the level of the state."""
    start = past[-1]
    ratio, gain, h = _ratio_and_gain(to, start)
    if order == 1:
        return Combination(ratio, (gain,))
    h_0 = start.half_log_snr - past[-2].half_log_snr
    slope_0 = h / h_0
    if order == 2:
        slope = gain * slope_0 / 2
        return Combination(ratio, (gain + slope, -slope))
    h_1 = past[-2].half_log_snr - past[-3].half_log_snr
    slope_1 = h / h_1
    first = to.signal - gain / h  # α ((e^-h - 1) / h + 1)
    second = to.signal * ((math.expm1(-h) + h) / h**2 - 0.5)
    # D1 = d0 + h_0 / (h_0 + h_1) (d0 - d1) and D2 = h / (h_0 + h_1) (d0 - d1) with d0, d1 the differences.
    bend = (first * h_0 - second * h) / (h_0 + h_1)
    of_d0, of_d1 = (first + bend) * slope_0, -bend * slope_1
    return Combination(ratio, (gain + of_d0, of_d1 - of_d0, -of_d1))


def _unified(to: Level, past: Sequence[Level], order: int, *, corrected: bool = False) -> Combination:
    """UniPC: predictions at earlier levels and, in the corrector, at `to`, with weights that make the
    integral exact for polynomials of λ. The lowest orders have 1/2, as their authors choose."""
    start = past[-1]
    ratio, gain, h = _ratio_and_gain(to, start)
    places = [(past[-1 - i].half_log_snr - start.half_log_snr) / h for i in range(1, order)]
    places += [1.0] if corrected else []
    if len(places) == 1:
        weights = [0.5]
    else:
        powers = np.vander(places, increasing=True).T
        weights = list(np.linalg.solve(powers, _moments(h, len(places)))) if places else []
    shares = [gain * float(weight) / place for weight, place in zip(weights, places, strict=True)]
    of_start = gain - sum(shares)
    if corrected:
        return Combination(ratio, (shares[-1], of_start, *shares[:-1]))
    return Combination(ratio, (of_start, *shares))


def _moments(h: float, count: int) -> list[float]:
    """b of the paper's equation R ρ = b: k! h φ_{k+1}(-h) / φ_1, for k from 1 on."""
    moments, factorial, denominator = [], 1, math.expm1(-h)
    phi = denominator / -h - 1
    for k in range(1, count + 1):
        moments.append(phi * factorial / denominator)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return moments
