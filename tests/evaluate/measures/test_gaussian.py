"""Statistics that add up: against numpy.cov, whatever the split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.gaussian import GaussianStatistics, feature_array


def features(seed: int, count: int, dim: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + offset


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 60), min_size=0, max_size=6),
    st.integers(1, 6),
    st.sampled_from([0.0, 3.0, 1000.0]),
    st.integers(0, 2**20),
)
def test_any_split_gives_the_whole(cuts: list[int], dim: int, offset: float, seed: int) -> None:
    """Batches of any sizes, empty ones too, in any order."""
    x = features(seed, 60, dim, offset)
    batches = [GaussianStatistics.of(part) for part in np.split(x, sorted(cuts))]
    total = GaussianStatistics.empty(dim)
    for index in np.random.default_rng(seed).permutation(len(batches)):
        total = total.merged(batches[index])
    assert total.count == 60
    expected = np.cov(x, rowvar=False).reshape(dim, dim)
    assert np.allclose(total.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    assert abs(total.covariance - expected).max() <= 1e-12 * abs(expected).max() * max(offset, 1)


def test_many_rows_are_summed_in_parts(monkeypatch) -> None:
    x = features(3, 50, 4)
    monkeypatch.setattr("causalfusion.evaluate.measures.gaussian._ROWS", 7)
    assert np.allclose(GaussianStatistics.of(x).covariance, np.cov(x, rowvar=False), rtol=1e-12)


def test_float32_features_are_summed_in_float64() -> None:
    x = features(1, 40, 3, 100.0).astype(np.float32)
    statistics = GaussianStatistics.of(x)
    assert statistics.covariance.dtype == np.float64
    assert np.allclose(statistics.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-11)


def test_a_covariance_comes_back() -> None:
    x = features(2, 30, 3)
    known = GaussianStatistics.from_covariance(30, x.mean(axis=0), np.cov(x, rowvar=False))
    assert np.allclose(known.scatter, GaussianStatistics.of(x).scatter, rtol=1e-12)


def test_what_are_no_features_is_refused() -> None:
    for bad, word in (
        (np.zeros(3), "shape"),
        (np.zeros((3, 0)), "shape"),
        ([[1.0], [1.0, 2.0]], "unlike"),
        (np.array([["a"]]), "real"),
        (np.zeros((2, 2), complex), "real"),
        (np.array([[1.0, np.inf]]), "finite"),
    ):
        with pytest.raises(UserError, match=word) as refusal:
            GaussianStatistics.of(bad)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="at least 4"):
        feature_array(np.zeros((3, 2)), at_least=4)
    with pytest.raises(UserError, match="D = 2"):
        GaussianStatistics.of(np.zeros((3, 2))).merged(GaussianStatistics.empty(3))
    with pytest.raises(UserError, match="at least 2"):
        _ = GaussianStatistics.of(np.zeros((1, 2))).covariance
    with pytest.raises(UserError, match="count is 1"):
        GaussianStatistics.from_covariance(1, np.zeros(2), np.eye(2))
    with pytest.raises(UserError, match="scatter"):
        GaussianStatistics(3, np.zeros(2), np.eye(3))
    with pytest.raises(UserError, match="finite"):
        GaussianStatistics(3, np.zeros(2), np.full((2, 2), np.nan))
