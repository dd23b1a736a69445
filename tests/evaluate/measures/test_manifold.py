"""Against scikit-learn's neighbours, and what must hold by definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.manifold import density_coverage, precision_recall


def by_neighbours(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage, of exact differences."""

    def radii(x: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x).kneighbors()[0][:, -1]

    distances = np.sqrt(((real[:, None] - fake[None]) ** 2).sum(axis=2))
    within = distances <= radii(real)[:, None]
    return (
        float(within.any(axis=0).mean()),
        float((distances <= radii(fake)[None]).any(axis=1).mean()),
        float(within.sum(axis=0).mean() / k),
        float((distances.min(axis=1) <= radii(real)).mean()),
    )


def found(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    a, b = precision_recall(real, fake, k), density_coverage(real, fake, k)
    return a.precision, a.recall, b.density, b.coverage


@settings(max_examples=30)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**20))
def test_equals_neighbours(n: int, m: int, dim: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(n, dim)), rng.normal(size=(m, dim)) * 1.5 + 0.5
    assert found(real, fake, k) == pytest.approx(by_neighbours(real, fake, k), abs=1e-12)


def test_blocks_do_not_matter(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(53, 4)), rng.normal(size=(40, 4)) + 0.5
    whole = found(real, fake, 3)
    monkeypatch.setattr("causalfusion.evaluate.measures.manifold._BLOCK", 16)
    assert found(real, fake, 3) == whole


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_offset_changes_nothing(dtype: type) -> None:
    """Distances of close points: steps of 2**-12, which float32 holds beside 1000 too. Without centring and
    in float32, squared distances of 1e-6 drown in squares of 1e6 x D."""
    rng = np.random.default_rng(1)
    real = (rng.integers(-64, 64, size=(80, 64)) * 2.0**-12).astype(dtype)
    fake = (rng.integers(-70, 70, size=(80, 64)) * 2.0**-12).astype(dtype)
    shifted = real + dtype(1000), fake + dtype(1000)
    assert (shifted[0] - dtype(1000) == real).all()
    expected = found(real, fake, 3)
    assert 0.05 < expected[0] < 0.95
    assert found(*shifted, 3) == expected
    exact = by_neighbours(real.astype(np.float64), fake.astype(np.float64), 3)
    assert expected == pytest.approx(exact, abs=0.03)  # equal distances are many on a lattice


def test_known_cases() -> None:
    rng = np.random.default_rng(2)
    real = rng.normal(size=(60, 5))
    assert found(real, real[::-1], 3)[:2] == (1, 1)
    assert density_coverage(real, real).coverage == 1
    # Each ball holds its k neighbours and its centre.
    assert density_coverage(real, real, 5).density == pytest.approx(6 / 5)
    assert found(real, real + 100, 3) == (0, 0, 0, 0)
    # Copies of copies: every ball of real ones has radius 0, and holds its copies.
    copies = np.repeat(rng.normal(size=(4, 5)) * 1e3, 8, axis=0)
    assert found(copies, copies, 3) == pytest.approx((1, 1, 8 / 3, 1))
    assert found(copies, copies + 1e-2, 3) == (0, 0, 0, 0)
    # All samples at one real place: like real ones, but one part of them only.
    spread, collapsed = rng.uniform(-1, 1, size=(500, 2)), rng.normal(size=(500, 2)) * 0.02
    a, b = precision_recall(spread, collapsed), density_coverage(spread, collapsed)
    assert a.precision > 0.9 and a.recall < 0.05 and b.coverage < 0.05


def test_equal_distributions_have_density_and_coverage_of_theory() -> None:
    """Naeem et al., lemmas 1 and 2: density 1; coverage 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)) for N = M."""
    rng = np.random.default_rng(3)
    measures = density_coverage(rng.normal(size=(1500, 6)), rng.normal(size=(1500, 6)), k=3)
    assert measures.density == pytest.approx(1, abs=0.08)
    assert measures.coverage == pytest.approx(1 - 0.5**3, abs=0.03)


def test_too_few_or_unlike_samples_are_refused() -> None:
    good = np.random.default_rng(4).normal(size=(4, 2))
    for bad in (good[:3], np.zeros((9, 3)), np.zeros(4), np.full((9, 2), np.nan)):
        with pytest.raises(UserError):
            precision_recall(good, bad, 3)
        with pytest.raises(UserError):
            density_coverage(bad, good, 3)
    with pytest.raises(UserError, match="k is 0"):
        precision_recall(good, good, 0)
    with pytest.raises(UserError, match="more than k = 5"):
        density_coverage(good, good)
    assert density_coverage(good, good[:1], 3).density > 0  # generated ones need no neighbours
