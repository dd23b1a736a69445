"""Inception Score: exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al., 1606.03498).

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.gaussian import Array, feature_array

_SUM_TOLERANCE = 1e-2
"""Largest deviation of a row of probabilities from the sum 1."""


class InceptionScore(NamedTuple):
    mean: float
    """Mean over the splits: from 1 (all images alike) to K (all images certain, classes equally often)."""
    deviation: float
    """Standard deviation over the splits with the divisor `splits`, as in the reference implementation."""


def probabilities_of(logits: ArrayLike) -> Array:
    """Softmax of logits (N, K), in float64."""
    from scipy.special import softmax

    return softmax(feature_array(logits, "logits").astype(np.float64), axis=1)


def inception_score(probabilities: ArrayLike, splits: int = 10) -> InceptionScore:
    """Inception Score of probabilities (N, K), as the reference implementation computes it: over `splits`
    consecutive parts, each with its own p(y). Samples sorted by class score too low: shuffle them first. The
    score depends on N / splits: compare only scores with the same number. See `probabilities_of` for logits.
    Raises UserError for rows that are no probabilities and for fewer samples than splits."""
    p = feature_array(probabilities, "probabilities").astype(np.float64)
    if (p < 0).any() or (abs(p.sum(axis=1) - 1) > _SUM_TOLERANCE).any():
        raise UserError(
            "probabilities have rows that do not sum to 1, or negative numbers; expected those of classes: "
            "turn logits into them with probabilities_of"
        )
    if not 1 <= splits <= len(p):
        raise UserError(f"splits is {splits}; expected 1 to the number of samples, {len(p)}")
    bounds = [part * len(p) // splits for part in range(splits + 1)]
    scores = [_score(p[start:end]) for start, end in pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(p: Array) -> float:
    from scipy.special import rel_entr

    return float(np.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()))
