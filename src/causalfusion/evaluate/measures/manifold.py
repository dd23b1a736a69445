"""Fidelity and diversity of samples by nearest neighbours: precision and recall (Kynkäänniemi et al.,
1904.06991), density and coverage (Naeem et al., 2002.09797).

A set's manifold is the union of balls around its samples, each with the distance to the k-th nearest
neighbour as its radius. A sample on the surface of a ball counts as within it.

Distances are computed in float64, from centred features, in blocks: an offset that all features share does no
harm, and 50,000 x 50,000 samples at D = 2048 need less than 1 GB besides the features. Distances below about
1e-6 of the features' spread count as 0.

Shape letters: N real samples, M generated ones, D numbers of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.gaussian import Array, feature_pair

_BLOCK = 4096
"""Rows and columns of a block of distances: 128 MiB."""


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    """The share of generated samples within the ball of some real sample: fidelity."""
    recall: float
    """The share of real samples within the ball of some generated sample: diversity."""
    within: NDArray[np.bool_] = field(compare=False, repr=False)
    """(M,): whether each generated sample is within the ball of some real one; precision is the mean."""


@dataclass(frozen=True)
class DensityCoverage:
    density: float
    """Mean number of real balls that contain a generated sample, divided by k: 1 for the real distribution,
    more where samples crowd in its middle."""
    coverage: float
    """The share of real balls that contain a generated sample. Unlike recall, it does not rise with outliers
    among the generated samples."""
    shares: NDArray[np.float64] = field(compare=False, repr=False)
    """(M,): number of real balls that contain each generated sample, divided by k; density is the mean."""


def precision_recall(real: ArrayLike, fake: ArrayLike, k: int = 3) -> PrecisionRecall:
    """Precision and recall of features (N, D) and (M, D), N and M above k; k = 3 as in ADM's evaluator. Both
    depend on N and M: compare only figures with the same numbers."""
    x, y, centre = _checked(real, fake, k, k)
    real_radii, fake_radii = _radii(x, centre, k), _radii(y, centre, k)
    within, reached = np.zeros(len(y), bool), np.zeros(len(x), bool)
    for rows, columns, squared in _squared_distances(x, y, centre):
        within[columns] |= (squared <= real_radii[rows, None]).any(axis=0)
        reached[rows] |= (squared <= fake_radii[columns]).any(axis=1)
    return PrecisionRecall(float(within.mean()), float(reached.mean()), within)


def density_coverage(real: ArrayLike, fake: ArrayLike, k: int = 5) -> DensityCoverage:
    """Density and coverage of features (N, D) and (M, D), N above k."""
    x, y, centre = _checked(real, fake, k, 0)
    radii = _radii(x, centre, k)
    balls, covered = np.zeros(len(y), np.int64), np.zeros(len(x), bool)
    for rows, columns, squared in _squared_distances(x, y, centre):
        within = squared <= radii[rows, None]
        balls[columns] += within.sum(axis=0)
        covered[rows] |= within.any(axis=1)
    shares = balls / k
    return DensityCoverage(float(shares.mean()), float(covered.mean()), shares)


def _checked(
    real: ArrayLike, fake: ArrayLike, real_k: int, fake_k: int
) -> tuple[NDArray[Any], NDArray[Any], Array]:
    """Both sets of features and their common mean (D,). Raises UserError unless the real set has more than
    `real_k` samples and the generated set more than `fake_k`."""
    if real_k < 1:
        raise UserError(f"k is {real_k}; expected at least 1 neighbour")
    x, y = feature_pair(real, fake, ("real features", "generated features"), at_least=1)
    for features, k, what in ((x, real_k, "real"), (y, fake_k, "generated")):
        if len(features) <= k:
            raise UserError(
                f"there are {len(features)} {what} samples; expected more than k = {k}: use more samples"
            )
    return x, y, (x.sum(axis=0, dtype=np.float64) + y.sum(axis=0, dtype=np.float64)) / (len(x) + len(y))


def _radii(x: NDArray[Any], centre: Array, k: int) -> Array:
    """Squared distance from each sample to its k-th nearest neighbour, (N,)."""
    nearest = np.full((len(x), k), np.inf)
    for rows, columns, squared in _squared_distances(x, x, centre):
        if rows == columns:
            np.fill_diagonal(squared, np.inf)
        candidates = np.concatenate([nearest[rows], squared], axis=1)
        nearest[rows] = np.partition(candidates, k - 1, axis=1)[:, :k]
    return nearest.max(axis=1)


def _squared_distances(
    x: NDArray[Any], y: NDArray[Any], centre: Array
) -> Iterator[tuple[slice, slice, Array]]:
    """Yields (rows of x, rows of y, squared distances between them), block by block.

    Not scikit-learn's pairwise_distances_chunked: with it `precision_recall` took 1.3 to 1.4 times as long
    (8,000 x 8,000 samples, D = 64 and 512, one core), and it needs all centred features in float64 at once:
    1.6 GB more at 50,000 x 50,000 and D = 2048."""
    rounding = x.shape[1] * np.finfo(np.float64).eps
    for row in range(0, len(x), _BLOCK):
        a = x[row : row + _BLOCK] - centre
        norms_a = (a**2).sum(axis=1)
        for column in range(0, len(y), _BLOCK):
            b = y[column : column + _BLOCK] - centre
            norms_b = (b**2).sum(axis=1)
            squared = a @ b.T
            squared *= -2
            squared += norms_a[:, None]
            squared += norms_b
            # Equal samples come out as rounding errors of either sign.
            squared[squared < rounding * (norms_a.max() + norms_b.max())] = 0
            yield slice(row, row + len(a)), slice(column, column + len(b)), squared
