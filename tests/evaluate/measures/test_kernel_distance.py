from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.kernel_distance import kernel_distance


def by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared discrepancy of all samples, pair by pair."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(float(i) * float(j) for i, j in zip(x, y, strict=True)) / len(x) + 1) ** 3

    own = [
        math.fsum(k(x, y) for x, y in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (a, b)
    ]
    return sum(own) - 2 * math.fsum(k(x, y) for x in a for y in b) / (len(a) * len(b))


def test_equals_the_naive_double_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) * 1.5 + 0.3
    assert kernel_distance(a, b).mean == pytest.approx(by_loops(a, b), rel=1e-12)
    longer = np.concatenate([b, b[:5]])
    of_the_smaller = kernel_distance(a, longer, subsets=30, subset_size=12)
    assert kernel_distance(a, longer, subsets=30) == of_the_smaller
    assert kernel_distance(a, longer, subsets=30, subset_size=11) != of_the_smaller


def test_subsets_average_to_all_pairs() -> None:
    """The discrepancy of a random subset is that of all samples on average: no bias of its size."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(9, 2)), rng.normal(size=(14, 2)) + 1
    for size in (2, 6):
        found = kernel_distance(a, b, subsets=2000, subset_size=size)
        assert found.mean == pytest.approx(by_loops(a, b), rel=0.1)


def test_equal_distributions_come_out_near_zero() -> None:
    """Within three standard errors, for subsets that hold few and all of the samples."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(300, 8)), rng.normal(size=(400, 8))
        for size in (40, 300):
            found = kernel_distance(a, b, subsets=30, subset_size=size, seed=seed)
            assert abs(found.mean) < 3 * found.standard_error, (seed, size)


@pytest.mark.parametrize(("shift", "subsets", "size", "widest"), [
    (0.0, 20, 25, 3.0), (0.0, 1, 25, 1.7), (0.0, 1, 100, 2.0), (0.7, 20, 25, 1.3), (0.7, 1, 100, 1.3),
])  # fmt: skip
def test_the_standard_error_is_that_of_new_samples(
    shift: float, subsets: int, size: int, widest: float
) -> None:
    """Against the deviation over many pairs of sets, which it must not fall short of by much."""
    rng = np.random.default_rng(7)
    found = [
        kernel_distance(
            rng.normal(size=(100, 4)), rng.normal(size=(100, 4)) + shift, subsets=subsets, subset_size=size
        )
        for _ in range(150)
    ]
    actual = np.std([f.mean for f in found])
    stated = np.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert 0.85 * actual < stated < widest * actual, stated / actual


def test_the_seed_decides_and_the_order_of_the_sets_does_not() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) + 1
    first = kernel_distance(a, b, subsets=5, subset_size=20, seed=3)
    assert first == kernel_distance(a, b, subsets=5, subset_size=20, seed=3)
    assert first.mean != kernel_distance(a, b, subsets=5, subset_size=20, seed=4).mean
    whole = kernel_distance(a, b[:50])
    assert kernel_distance(b[:50], a).mean == pytest.approx(whole.mean, rel=1e-12)
    assert kernel_distance(a.astype(np.float32), b[:50]).mean == pytest.approx(whole.mean, rel=1e-5)


def test_what_has_no_distance_is_refused() -> None:
    good = np.ones((5, 2))
    for bad in (np.ones((1, 2)), np.ones((5, 3)), np.ones(5), np.full((5, 2), np.inf)):
        with pytest.raises(UserError):
            kernel_distance(good, bad)
    for subsets, size in ((0, 10), (10, 1)):
        with pytest.raises(UserError, match="subset"):
            kernel_distance(good, good, subsets=subsets, subset_size=size)
