"""Gaussian statistics of features: count, mean and scatter, which add up over batches and processes.

Shape letters: N samples, D numbers of a feature. All sums are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from causalfusion.errors import UserError

Array = NDArray[np.float64]

_ROWS = 8192
"""Features converted to float64 at a time."""


def feature_array(features: ArrayLike, what: str = "features", at_least: int = 1) -> NDArray[Any]:
    """Features as an array (N, D) in their own dtype; `what` names them in errors. Raises UserError unless
    they are finite real numbers of this shape, D at least 1 and N at least `at_least`."""
    try:
        array = np.asarray(features)
    except ValueError:
        raise UserError(
            f"{what} have rows of unlike lengths; expected (N, D), one row for each sample"
        ) from None
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiub":
        raise UserError(
            f"{what} have shape {array.shape} and type {array.dtype}; expected real numbers (N, D), "
            "one row for each sample"
        )
    if len(array) < at_least:
        raise UserError(
            f"{what} have N = {len(array)} samples; expected at least {at_least}: use more samples"
        )
    if not np.isfinite(array).all():
        raise UserError(f"{what} are not finite; expected numbers: look for broken images or weights")
    return array


def feature_pair(
    first: ArrayLike, second: ArrayLike, names: tuple[str, str], at_least: int = 2
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features (N, D) and (M, D). Raises UserError as `feature_array` does, and where D differs."""
    a, b = feature_array(first, names[0], at_least), feature_array(second, names[1], at_least)
    check_same_dim(a.shape[1], b.shape[1], names)
    return a, b


def check_same_dim(first: int, second: int, names: tuple[str, str] = ("features a", "features b")) -> None:
    if first != second:
        raise UserError(
            f"{names[0]} have D = {first} and {names[1]} D = {second}; expected equal D: use one extractor"
        )


@dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """Everything that a Fréchet distance needs from a set of features. A stream of batches adds up by
    `total = total.merged(GaussianStatistics.of(batch))`, starting with `GaussianStatistics.empty(dim)`."""

    count: int
    mean: Array
    """(D,); zeros where the count is 0."""
    scatter: Array
    """(D, D): the sum of (x - mean)(x - mean)ᵀ over the samples."""

    def __post_init__(self) -> None:
        mean, scatter = np.asarray(self.mean, np.float64), np.asarray(self.scatter, np.float64)
        if self.count < 0 or mean.ndim != 1 or len(mean) == 0 or scatter.shape != (len(mean), len(mean)):
            raise UserError(
                f"statistics have count {self.count}, a mean {mean.shape} and a scatter {scatter.shape}; "
                "expected a count from 0 on, (D,) and (D, D)"
            )
        if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
            raise UserError("statistics are not finite; expected numbers: look for broken images or weights")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "scatter", scatter)

    @classmethod
    def empty(cls, dim: int) -> GaussianStatistics:
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: ArrayLike) -> GaussianStatistics:
        """Statistics of features (N, D); N may be 0."""
        array = feature_array(features, at_least=0)
        total = cls.empty(array.shape[1])
        for start in range(0, len(array), _ROWS):
            rows = array[start : start + _ROWS].astype(np.float64)
            mean = rows.mean(axis=0)
            rows -= mean
            total = total.merged(cls(len(rows), mean, rows.T @ rows))
        return total

    @classmethod
    def from_covariance(cls, count: int, mean: ArrayLike, covariance: ArrayLike) -> GaussianStatistics:
        """Statistics with this mean (D,) and unbiased covariance (D, D), as reference files hold them."""
        if count < 2:
            raise UserError(f"count is {count}; expected at least 2: a covariance has no meaning below")
        scatter = np.asarray(covariance, np.float64) * (count - 1)
        return cls(count, np.asarray(mean, np.float64), scatter)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Array:
        """Unbiased covariance, (D, D): the scatter divided by N - 1. Raises UserError below two samples."""
        if self.count < 2:
            raise UserError(f"there are N = {self.count} samples; expected at least 2 for a covariance")
        return self.scatter / (self.count - 1)

    def merged(self, other: GaussianStatistics) -> GaussianStatistics:
        """Statistics of both sets together (Chan, Golub and LeVeque, 1983, eq. 2.1), without cancellation."""
        check_same_dim(self.dim, other.dim)
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = np.outer(step, step)
        scatter *= self.count * (other.count / count)
        scatter += self.scatter
        scatter += other.scatter
        return GaussianStatistics(count, self.mean + step * (other.count / count), scatter)
