"""Do intervals hold the truth as often as they say?"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.extrapolation import debiased_frechet_distance
from causalfusion.evaluate.measures.frechet import frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.measures.intervals import (
    class_accuracy,
    frechet_interval,
    mean_interval,
    share_interval,
)

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
        corrected = debiased_frechet_distance(real, fake, seed=seed)
        assert found.low <= max(corrected, 0) <= found.high
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
    """Also of what is not Gaussian, and as narrow as Student's t has it."""
    held = 0
    for seed in range(100):
        low, high = mean_interval(np.random.default_rng(seed).exponential(size=80), resamples=300, seed=seed)
        held += low <= 1 <= high
    assert held >= 88
    values = np.random.default_rng(1).normal(size=400)
    for level, reach in ((0.95, 1.96), (0.68, 0.994)):
        low, high = mean_interval(values, resamples=4000, level=level)
        assert high - low == pytest.approx(2 * reach * values.std() / 20, rel=0.08)
        assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


@pytest.mark.parametrize("count", [2, 7, 1001])
def test_an_interval_of_a_mean_equals_a_plain_loop(count: int, monkeypatch) -> None:
    """Resample by resample, from the same numbers; however many are drawn at once."""
    values = np.random.default_rng(count).exponential(size=count)
    random = np.random.default_rng(5)
    means = sorted(sum(values[random.integers(count, size=count)].tolist()) / count for _ in range(200))
    # Linear between the order statistics: places 199 * 0.1 and 199 * 0.9.
    expected = means[19] * 0.1 + means[20] * 0.9, means[179] * 0.9 + means[180] * 0.1
    assert mean_interval(values, resamples=200, seed=5, level=0.8) == pytest.approx(expected, rel=1e-12)
    whole = mean_interval(values, resamples=200, seed=5)
    monkeypatch.setattr("causalfusion.evaluate.measures.intervals._DRAWN_AT_ONCE", 3 * count)
    assert mean_interval(values, resamples=200, seed=5) == whole


def wilson(hits: int, count: int, level: float) -> tuple[float, float]:
    """The closed form (Wilson, 1927): all shares that lie within z of their own standard deviations."""
    z, share = NormalDist().inv_cdf((1 + level) / 2), hits / count
    root = z * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    return (middle - root) / scale, (middle + root) / scale


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 10), (3, 20), (50, 50), (812, 1000), (1, 1), (49_999, 50_000)]
)
def test_class_accuracy_has_wilsons_interval(hits: int, count: int) -> None:
    labels = np.arange(count) % 7
    predicted = np.where(np.arange(count) < hits, labels, labels + 1)
    for level in (0.95, 0.8):
        found = class_accuracy(predicted, labels, level)
        assert found.value == hits / count
        assert (found.low, found.high) == pytest.approx(wilson(hits, count, level), rel=1e-12, abs=1e-15)
        assert (found.low, found.high) == share_interval(np.arange(count) < hits, level)


def test_what_has_no_interval_is_refused() -> None:
    good = np.random.default_rng(2).normal(size=(20, 3))
    for arguments in ({"level": 0}, {"level": 95}, {"resamples": 39}):
        with pytest.raises(UserError):
            mean_interval(good[:, 0], **arguments)
        with pytest.raises(UserError):
            frechet_interval(good, good, **arguments)
    for values in (good, good[:1, 0], good[:0, 0], good[:, 0] * np.nan):
        with pytest.raises(UserError, match="at least 2 finite numbers"):
            mean_interval(values)
    for bad in (good[:, :2], good[:1], good[0], good * np.nan):
        with pytest.raises(UserError):
            frechet_interval(good, bad)
    for predicted, labels in (([1, 2], [1]), ([], []), ([[1]], [[1]]), ([0.5, 1.0], [0, 1])):
        with pytest.raises(UserError):
            class_accuracy(predicted, labels)
    with pytest.raises(UserError, match="level"):
        class_accuracy([1], [1], 1.0)
