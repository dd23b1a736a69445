from __future__ import annotations

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.extrapolation import (
    debiased_frechet_distance,
    distances_of_subsets,
    extrapolated_frechet_distance,
)
from causalfusion.evaluate.measures.frechet import frechet_distance, gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics

DIM = 12
SPREAD = np.linspace(1.0, 0.2, DIM)
SHIFT = 0.1
TRUE = DIM * SHIFT**2 + (SPREAD**2 * 0.04).sum()
"""The Fréchet distance between N(0, SPREAD²) and N(SHIFT, (1.2 SPREAD)²)."""


def samples(seed: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, DIM)) * SPREAD, rng.normal(size=(m, DIM)) * SPREAD * 1.2 + SHIFT


def exact_statistics() -> GaussianStatistics:
    return GaussianStatistics.from_covariance(10**6, np.zeros(DIM), np.diag(SPREAD**2))


@pytest.mark.parametrize("known", [False, True])
def test_the_bias_goes(known: bool) -> None:
    """The plain distance is too high in every repetition; without its bias, right on average and much nearer
    in each; of two sets of samples, and of one against known statistics."""
    plain, extrapolated, halved = [], [], []
    for seed in range(20):
        real, fake = samples(seed, 240, 120)
        real = exact_statistics() if known else real
        reference = real if isinstance(real, GaussianStatistics) else GaussianStatistics.of(real)
        plain.append(gaussian_frechet_distance(reference, GaussianStatistics.of(fake)) - TRUE)
        extrapolated.append(extrapolated_frechet_distance(real, fake) - TRUE)
        halved.append(debiased_frechet_distance(real, fake) - TRUE)
    assert min(plain) > 0 and np.mean(plain) > 0.15
    for errors in (extrapolated, halved):
        assert abs(np.mean(errors)) < 4 * np.std(errors) / len(errors) ** 0.5
        assert np.mean(np.abs(errors)) < np.mean(plain) / 3
    assert np.std(halved) < np.std(extrapolated)


def test_the_line_is_that_of_its_points() -> None:
    """Counts evenly spaced in 1 / N; the intercept against polyfit."""
    real, fake = samples(5, 400, 300)
    arguments = {"points": 12, "smallest": 50, "subsets": 4, "seed": 0}
    counts, distances = distances_of_subsets(real, fake, **arguments)
    assert counts[0] == 300 and counts[-1] == 50 and len(counts) == len(distances) == 12
    inverse = 1 / np.array(counts)
    assert np.allclose(np.diff(inverse), (1 / 50 - 1 / 300) / 11, rtol=0.12)
    assert distances[0] == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    _, intercept = np.polyfit(inverse, distances, 1)
    assert extrapolated_frechet_distance(real, fake, **arguments) == pytest.approx(intercept, rel=1e-12)


def test_the_seed_decides() -> None:
    real, fake = samples(6, 400, 400)
    found = [extrapolated_frechet_distance(real, fake, subsets=1, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_the_smallest_count_stays_where_the_bias_is_linear() -> None:
    for total, smallest in ((1000, 100), (200, 24), (30, 15)):
        real, fake = samples(7, total, total)
        counts, _ = distances_of_subsets(real, fake, points=10, smallest=None, subsets=1, seed=0)
        assert counts[-1] == smallest


def test_what_cannot_be_extrapolated_is_refused() -> None:
    real, fake = samples(8, 60, 60)
    for arguments in ({"points": 2}, {"subsets": 0}, {"smallest": 1}, {"smallest": 55}):
        with pytest.raises(UserError):
            extrapolated_frechet_distance(real, fake, **arguments)
    for bad in (fake[:12], fake[:, :3], fake[0], fake * np.nan):
        with pytest.raises(UserError):
            extrapolated_frechet_distance(real, bad)
    with pytest.raises(UserError, match="halvings"):
        debiased_frechet_distance(real, fake, halvings=0)
    with pytest.raises(UserError, match="fewer than 4"):
        debiased_frechet_distance(real[:3], fake)
    with pytest.raises(UserError, match="D = 11"):
        debiased_frechet_distance(exact_statistics(), fake[:, :11])
