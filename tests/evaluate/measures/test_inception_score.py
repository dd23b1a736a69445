from __future__ import annotations

import math

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.inception_score import inception_score, probabilities_of


def by_loops(p: np.ndarray, splits: int) -> tuple[float, float]:
    """As the reference does: consecutive parts, exp of the mean divergence from the part's own mean."""
    scores = []
    for part in range(splits):
        rows = p[part * len(p) // splits : (part + 1) * len(p) // splits]
        mean = [math.fsum(row[c] for row in rows) / len(rows) for c in range(p.shape[1])]
        divergences = [
            math.fsum(q * math.log(q / m) for q, m in zip(row, mean, strict=True) if q > 0) for row in rows
        ]
        scores.append(math.exp(math.fsum(divergences) / len(rows)))
    centre = math.fsum(scores) / splits
    return centre, math.sqrt(math.fsum((s - centre) ** 2 for s in scores) / splits)


@pytest.mark.parametrize(("count", "splits"), [(40, 1), (43, 10), (10, 10), (25, 3)])
def test_equals_a_plain_loop(count: int, splits: int) -> None:
    logits = np.random.default_rng(count).normal(size=(count, 7)) * 4
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    score = inception_score(probabilities_of(logits), splits)
    assert tuple(score) == pytest.approx(by_loops(p, splits), rel=1e-12)
    # Logits are known up to a constant of each row.
    shifted = inception_score(probabilities_of(logits + 1e4), splits)
    assert tuple(shifted) == pytest.approx(tuple(score), rel=1e-8)


def test_closed_forms() -> None:
    """Nothing recognised: 1. Each image of one class, all as often in each split: K."""
    assert tuple(inception_score(np.full((30, 5), 0.2))) == pytest.approx((1, 0), abs=1e-12)
    assert tuple(inception_score(np.tile(np.eye(5), (20, 1)))) == pytest.approx((5, 0), abs=1e-12)
    # One class only, and zeros of the others.
    assert inception_score(np.tile(np.eye(5)[:1], (20, 1))).mean == pytest.approx(1, abs=1e-12)
    # Two of four classes in one half, all four in the other.
    mixed = np.concatenate([np.tile(np.eye(4)[:2], (10, 1)), np.tile(np.eye(4), (5, 1))])
    assert tuple(inception_score(mixed, 2)) == pytest.approx((3, 1), abs=1e-12)


def test_what_are_no_probabilities_is_refused() -> None:
    for bad in (np.zeros((20, 3)), np.tile([1.5, -0.5], (20, 1)), np.zeros(20), np.full((20, 2), np.nan)):
        with pytest.raises(UserError):
            inception_score(bad)
    for splits in (0, 21):
        with pytest.raises(UserError, match="splits"):
            inception_score(np.full((20, 2), 0.5), splits)
