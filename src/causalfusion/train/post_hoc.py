"""Exponential moving averages of any width, from stored ones of others (Karras et al. 2312.02696, section 3
and appendix C).

The average of exponent gamma after t updates weighs the weights of update i as i**(gamma + 1) -
(i - 1)**(gamma + 1), the integral of its profile tau**gamma. Its width is the profile's standard deviation
relative to t. A sum of profiles that is close to a profile is, with the averages in their place, close to its
average.

Shape letters: N stored averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def exponent_of(width: float) -> float:
    """The exponent gamma >= 0 of a relative width, at most 12**-0.5: the largest root of eq. 126."""
    inverse = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def decay_of(width: float, updates: int) -> float:
    """The decay of the average's update that is its number `updates`, 1 for the first (eq. 127): the first
    one is the weights themselves."""
    return (1 - 1 / updates) ** (exponent_of(width) + 1)


@dataclass(frozen=True)
class Profile:
    """The weights of an average, as a density over the updates before."""

    width: float
    updates: int


def inner_products(rows: Sequence[Profile], columns: Sequence[Profile]) -> np.ndarray:
    """The integrals of the products of profiles, (rows, columns) float64."""
    times, exponents = (
        [np.array([f(p) for p in profiles], dtype=np.float64) for profiles in (rows, columns)]
        for f in (lambda p: p.updates, lambda p: exponent_of(p.width))
    )
    (t, u), (a, b) = (times[0][:, None], times[1]), (exponents[0][:, None], exponents[1])
    of_later = np.where(t <= u, b, a)
    earlier, later = np.minimum(t, u), np.maximum(t, u)
    return (a + 1) * (b + 1) / (a + b + 1) * (earlier / later) ** of_later / later


def combine(stored: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """(coefficients (N,) float64 that sum to 1, of the stored averages whose sum is nearest to the target's
    profile; how far from it that sum is, relative to its norm)."""
    size = len(stored)
    system = np.ones((size + 1, size + 1))  # with a multiplier for the sum: else weights of norms shrink
    system[:size, :size] = inner_products(stored, stored)
    system[size, size] = 0
    wanted = np.append(inner_products(stored, [target]), 1.0)
    found = np.linalg.lstsq(system, wanted, rcond=None)[0][:size]
    square = inner_products([target], [target]).item()
    distance = found @ system[:size, :size] @ found - 2 * found @ wanted[:size] + square
    return found, float(np.sqrt(max(distance, 0.0) / square))
