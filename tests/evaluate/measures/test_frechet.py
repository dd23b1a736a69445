from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.frechet import (
    few_samples_warning,
    frechet_distance,
    frechet_influence,
    gaussian_frechet_distance,
)
from causalfusion.evaluate.measures.gaussian import GaussianStatistics


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> GaussianStatistics:
    return GaussianStatistics.from_covariance(2, mean, covariance)


@settings(max_examples=30)
@given(st.floats(-3, 3), st.floats(0, 4), st.floats(-3, 3), st.floats(0, 4))
def test_one_dimensional_gaussians_have_a_closed_form(m1: float, s1: float, m2: float, s2: float) -> None:
    a, b = (gaussian(np.array([m]), np.array([[s**2]])) for m, s in ((m1, s1), (m2, s2)))
    actual = gaussian_frechet_distance(a, b)
    assert actual == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(2, 12), st.integers(0, 2**20))
def test_equals_the_square_root_of_the_product(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(40, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    b = rng.normal(size=(50, dim)) @ rng.normal(size=(dim, dim))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-6, abs=1e-6)


def test_fewer_images_than_features_is_exact_too() -> None:
    """Singular covariances: shifting a set moves the distance by exactly the squared shift."""
    a = np.random.default_rng(0).normal(size=(5, 64))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 0.5) == pytest.approx(64 * 0.25, abs=1e-6)
    # Scaling the spread by 3 about the same mean: tr(A) (3 - 1)².
    spread = a.mean(0) + 3 * (a - a.mean(0))
    assert frechet_distance(a, spread) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)), rel=1e-6)


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 2**20))
def test_commuting_covariances_have_a_closed_form(dim: int, seed: int) -> None:
    """With equal eigenvectors: the squared differences of the standard deviations, some of them 0."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    s, t = rng.uniform(0, 3, dim) * (rng.random(dim) < 0.7), rng.uniform(0, 3, dim) * (rng.random(dim) < 0.7)
    m, n = rng.normal(size=(2, dim))
    expected = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    for q in (axes, np.eye(dim)):
        a, b = gaussian(m, q @ np.diag(s**2) @ q.T), gaussian(n, q @ np.diag(t**2) @ q.T)
        actual = gaussian_frechet_distance(a, b)
        assert actual == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 200), (7, 30), (2, 90), (70, 61)])
def test_singular_covariances_are_exact(n: int, m: int) -> None:
    """The trace of the root is the sum of the singular values of the samples' (N, M) products: no covariance,
    no rounded eigenvalue 0 whose root would count."""
    rng = np.random.default_rng(n)
    spread = np.logspace(1, -3, 60)
    a, b = rng.normal(size=(n, 60)) * spread, rng.normal(size=(m, 60)) @ rng.normal(size=(60, 60)) * spread
    x, y = (a - a.mean(0)) / np.sqrt(n - 1), (b - b.mean(0)) / np.sqrt(m - 1)
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_statistics_are_enough() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(50, 4)) * 2
    parts = GaussianStatistics.of(a[:11]).merged(GaussianStatistics.of(a[11:]))
    assert gaussian_frechet_distance(parts, GaussianStatistics.of(b)) == pytest.approx(
        frechet_distance(a, b), rel=1e-12
    )
    assert frechet_distance(a.astype(np.float32), b) == pytest.approx(frechet_distance(a, b), rel=1e-5)


@pytest.mark.parametrize("n", [40, 5])
def test_influence_is_the_derivative_by_the_weight_of_a_sample(n: int) -> None:
    """By differences, of covariances with weights; with fewer samples than dimensions too."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(60, 8)) + 0.5
    other, counted = GaussianStatistics.of(b), GaussianStatistics.of(a)
    own = GaussianStatistics(n + 1, counted.mean, counted.scatter)  # a covariance divided by N, as below

    def distance(weights: np.ndarray) -> float:
        p = weights / weights.sum()
        mean = p @ a
        return gaussian_frechet_distance(gaussian(mean, ((a - mean).T * p) @ (a - mean)), other)

    influence = frechet_influence(a, own, other)
    assert influence.mean() == pytest.approx(0, abs=1e-10)
    step = 1e-4
    for sample in range(5):
        bump = step * n * np.eye(n)[sample]
        slope = (distance(1 + bump) - distance(1 - bump)) / (2 * step)
        assert slope == pytest.approx(influence[sample], rel=1e-5)


def test_too_few_samples_are_called_by_name() -> None:
    assert few_samples_warning(65, 64, "generated") is None
    for count in (2, 64):
        warning = few_samples_warning(count, 64, "generated images")
        assert warning and "generated images" in warning and "too high" in warning and "\n" not in warning
    with pytest.raises(UserError, match="at least 2"):
        few_samples_warning(1, 64, "generated")


def test_what_has_no_distance_is_refused() -> None:
    good = np.zeros((3, 2))
    for bad in (np.zeros((1, 2)), np.zeros((3, 5)), np.zeros(3), np.full((3, 2), np.nan)):
        with pytest.raises(UserError):
            frechet_distance(good, bad)
    with pytest.raises(UserError, match="D = 2 and features b D = 3"):
        gaussian_frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(3), np.eye(3)))
