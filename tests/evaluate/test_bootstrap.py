"""Do intervals hold the truth as often as they say?"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.bootstrap import bootstrap_interval, class_accuracy, frechet_interval
from causalfusion.evaluate.measures.frechet import frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics

REPETITIONS = 40


def gaussians(dim: int, shift: float, scale: float) -> tuple[np.ndarray, float]:
    """Standard deviations of the first, and the closed form of the distance to the second, which lies `shift`
    away in each direction and is `scale` times as wide."""
    spread = np.linspace(1.0, 0.2, dim)
    return spread, dim * shift**2 + ((1 - scale) ** 2 * spread**2).sum()


@pytest.mark.parametrize(("dim", "n", "m", "shift", "scale"), [
    (4, 100, 100, 0.1, 1.2), (8, 200, 400, 0.3, 1.0), (16, 64, 64, 0.1, 1.4), (32, 120, 200, 0.2, 0.8),
])  # fmt: skip
def test_the_frechet_distance_lies_within_its_interval(
    dim: int, n: int, m: int, shift: float, scale: float
) -> None:
    """In at least 85 % of the repetitions, and in most the interval says more than "not far": while the plain
    distance, and with it any interval around it, is biased."""
    spread, true = gaussians(dim, shift, scale)
    held, widths, deviations = 0, [], []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        real, fake = rng.normal(size=(n, dim)) * spread, rng.normal(size=(m, dim)) * spread * scale + shift
        found = frechet_interval(real, fake, resamples=300, seed=seed)
        assert found.low <= max(found.corrected, 0) <= found.high
        held += found.low <= true <= found.high
        widths.append(found.high - found.low)
        deviations.append(frechet_distance(real, fake))
    assert held >= 0.85 * REPETITIONS
    # 3.9 standard deviations wide, as it would be if the distribution were known.
    assert np.mean(widths) < 1.6 * 3.92 * np.std(deviations)


def test_against_known_statistics_only_the_samples_are_unsure() -> None:
    spread, true = gaussians(8, 0.3, 1.2)
    held, narrower = 0, 0
    known = GaussianStatistics.from_covariance(1000, np.zeros(8), np.diag(spread**2))
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        real, fake = rng.normal(size=(150, 8)) * spread, rng.normal(size=(150, 8)) * spread * 1.2 + 0.3
        found, both = (frechet_interval(r, fake, resamples=300, seed=seed) for r in (known, real))
        held += found.low <= true <= found.high
        narrower += found.high - found.low < both.high - both.low
    assert held >= 0.85 * REPETITIONS and narrower >= 0.9 * REPETITIONS


def test_equal_distributions_have_an_interval_from_0_on() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 8))
    found = frechet_interval(a, b)
    assert found.low == 0 and 0 < found.high < frechet_distance(a, b) * 3
    assert found == frechet_interval(a, b)
    # The larger the sets, the surer.
    c, d = rng.normal(size=(2, 4800, 8))
    assert frechet_interval(c, d).high < found.high / 4


def test_the_mean_lies_within_its_interval() -> None:
    """Also of what is not Gaussian, of two samples, and as narrow as Student's t has it."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x, y = rng.exponential(size=80), rng.normal(size=(50, 2)) + 3
        low, high = bootstrap_interval(lambda a, b: b.mean() - a.mean(), x, y, resamples=300, seed=seed)
        held += low <= 2 <= high
    assert held >= 88
    values = np.random.default_rng(1).normal(size=400)
    for level, reach in ((0.95, 1.96), (0.68, 0.994)):
        low, high = bootstrap_interval(np.mean, values, resamples=4000, level=level)
        assert high - low == pytest.approx(2 * reach * values.std() / 20, rel=0.08)
        assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_pairs_stay_pairs() -> None:
    """Rows of one array are drawn together: a figure of pairs that all agree has no spread."""
    pairs = np.repeat(np.arange(30)[:, None], 2, axis=1)
    assert bootstrap_interval(lambda rows: float((rows[:, 0] == rows[:, 1]).mean()), pairs) == (1, 1)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 20), (50, 50), (812, 1000)])
def test_class_accuracy_has_wilsons_interval(hits: int, count: int) -> None:
    labels = np.arange(count) % 7
    predicted = np.where(np.arange(count) < hits, labels, labels + 1)
    for level in (0.95, 0.8):
        found = class_accuracy(predicted, labels, level)
        expected = binomtest(hits, count).proportion_ci(level, method="wilson")
        assert found.value == hits / count
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_what_has_no_interval_is_refused() -> None:
    good = np.random.default_rng(2).normal(size=(20, 3))
    for arguments in ({"level": 0}, {"level": 95}, {"resamples": 39}):
        with pytest.raises(UserError):
            bootstrap_interval(np.mean, good, **arguments)
        with pytest.raises(UserError):
            frechet_interval(good, good, **arguments)
    with pytest.raises(UserError, match="at least one set"):
        bootstrap_interval(np.mean)
    with pytest.raises(UserError, match="at least one set"):
        bootstrap_interval(np.mean, np.zeros(0))
    with pytest.raises(UserError, match="not finite"):
        bootstrap_interval(lambda x: float("nan"), good)
    for bad in (good[:, :2], good[:1], good[0], good * np.nan):
        with pytest.raises(UserError):
            frechet_interval(good, bad)
    for predicted, labels in (([1, 2], [1]), ([], []), ([[1]], [[1]]), ([0.5, 1.0], [0, 1])):
        with pytest.raises(UserError):
            class_accuracy(predicted, labels)
    with pytest.raises(UserError, match="level"):
        class_accuracy([1], [1], 1.0)
