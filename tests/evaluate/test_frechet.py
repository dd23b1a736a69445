from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.errors import UserError
from causalfusion.evaluate.frechet import frechet_distance, frechet_distance_of_gaussians


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(0, 4), st.floats(-3, 3), st.floats(0, 4))
def test_one_dimensional_gaussians_have_a_closed_form(m1: float, s1: float, m2: float, s2: float) -> None:
    actual = frechet_distance_of_gaussians(
        np.array([m1]), np.array([[s1**2]]), np.array([m2]), np.array([[s2**2]])
    )
    assert actual == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, abs=1e-9)


@settings(max_examples=20, deadline=None)
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


def test_what_has_no_distance_is_refused() -> None:
    good = np.zeros((3, 2))
    for bad in (np.zeros((1, 2)), np.zeros((3, 5)), np.zeros(3), np.full((3, 2), np.nan)):
        with pytest.raises(UserError):
            frechet_distance(good, bad)
