"""The Fréchet distance without the bias of finite sets, which makes it too large by about 1 / N.

Shape letters: N generated samples, M real ones, D numbers of a feature.

Real features may be given as `GaussianStatistics`, such as those of a reference file. These count as the
exact distribution, and only the bias of the generated samples is removed. Given two sets of features, both
are subsampled in proportion, and the biases of both are removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import linear_regression
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.frechet import gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics, check_same_dim, feature_array

FeatureSet = NDArray[Any] | GaussianStatistics
"""Features (N, D), or the statistics of an exactly known distribution."""


def extrapolated_frechet_distance(
    real: ArrayLike | GaussianStatistics,
    fake: ArrayLike,
    *,
    points: int = 10,
    smallest: int | None = None,
    subsets: int = 4,
    seed: int = 0,
) -> float:
    """Fréchet distance at infinitely many samples (Chong and Forsyth, 1911.07023): the intercept, at 1 / N =
    0, of the line through `distances_of_subsets`. It can fall a little below 0 for equal distributions."""
    counts, distances = distances_of_subsets(
        real, fake, points=points, smallest=smallest, subsets=subsets, seed=seed
    )
    return linear_regression([1 / count for count in counts], distances).intercept


def distances_of_subsets(
    real: ArrayLike | GaussianStatistics,
    fake: ArrayLike,
    *,
    points: int,
    smallest: int | None,
    subsets: int,
    seed: int,
) -> tuple[list[int], list[float]]:
    """Counts of generated samples, from all N down to `smallest` at `points` places evenly spaced in 1 / N,
    and the mean Fréchet distance of random subsets of each count.

    The distance is linear in 1 / N only where N is well above D: `smallest` is by default N / 10, but at
    least 2 D, and at most N / 2. Each distance is the mean over up to `subsets` disjoint subsets, as many as
    there are (the paper takes one), so that up to points x subsets distances are computed.
    """
    x, y = checked_sets(real, fake)
    total, dim = y.shape
    if points < 3 or subsets < 1:
        raise UserError(f"points is {points} and subsets {subsets}; expected at least 3 points of 1 subset")
    lowest = smallest if smallest is not None else min(max(total // 10, 2 * dim), total // 2)
    fewest = lowest if isinstance(x, GaussianStatistics) else min(lowest, len(x) * lowest // total)
    if fewest < 2 or total - lowest < points:
        raise UserError(
            f"there are {total} generated samples, and the smallest subset has {fewest}; expected subsets "
            f"of at least 2 and {points} counts above: use more samples or fewer points"
        )
    counts = [round(1 / share) for share in np.linspace(1 / total, 1 / lowest, points)]
    random = np.random.default_rng(seed)
    distances = []
    for count in counts:
        real_count = 0 if isinstance(x, GaussianStatistics) else round(len(x) * count / total)
        parts = zip(
            _random_subsets(x, real_count, subsets, random),
            _random_subsets(y, count, subsets, random),
            strict=False,
        )
        distances.append(float(np.mean([gaussian_frechet_distance(a, b) for a, b in parts])))
    return counts, distances


def debiased_frechet_distance(
    real: ArrayLike | GaussianStatistics, fake: ArrayLike, *, halvings: int = 4, seed: int = 0
) -> float:
    """Twice the distance of all samples minus the mean distance of random halves (Quenouille, 1949). The bias
    of order 1 / N cancels; so does, to first order, the randomness of the halves, as each is used together
    with its complement. The error is smaller than that of the extrapolation, the cost 1 + 2 x halvings
    distances. The result can fall below 0."""
    x, y = checked_sets(real, fake)
    if halvings < 1:
        raise UserError(f"halvings is {halvings}; expected at least 1")
    if len(y) < 4 or (not isinstance(x, GaussianStatistics) and len(x) < 4):
        raise UserError("there are fewer than 4 samples; expected at least 4: halves need 2 each")
    random = np.random.default_rng(seed)
    halves = []
    for _ in range(halvings):
        real_half = 0 if isinstance(x, GaussianStatistics) else len(x) // 2
        parts = zip(
            _random_subsets(x, real_half, 2, random), _random_subsets(y, len(y) // 2, 2, random), strict=False
        )
        halves += [gaussian_frechet_distance(a, b) for a, b in parts]
    return 2 * gaussian_frechet_distance(statistics_of(x), GaussianStatistics.of(y)) - float(np.mean(halves))


def checked_sets(real: ArrayLike | GaussianStatistics, fake: ArrayLike) -> tuple[FeatureSet, NDArray[Any]]:
    """Real and generated features. Raises UserError unless both have the same D and at least 2 samples."""
    names = ("real features", "generated features")
    x = real if isinstance(real, GaussianStatistics) else feature_array(real, names[0], at_least=2)
    y = feature_array(fake, names[1], at_least=2)
    check_same_dim(x.dim if isinstance(x, GaussianStatistics) else x.shape[1], y.shape[1], names)
    return x, y


def statistics_of(features: FeatureSet) -> GaussianStatistics:
    return features if isinstance(features, GaussianStatistics) else GaussianStatistics.of(features)


def _random_subsets(
    features: FeatureSet, count: int, most: int, random: np.random.Generator
) -> Iterator[GaussianStatistics]:
    """Statistics of up to `most` disjoint random subsets of `count` samples; of an exactly known
    distribution, `most` times its own statistics."""
    if isinstance(features, GaussianStatistics):
        yield from [features] * most
        return
    order = random.permutation(len(features))
    for part in range(min(most, len(features) // count)):
        yield GaussianStatistics.of(features[order[part * count : (part + 1) * count]])
