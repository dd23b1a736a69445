"""Inception score: exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al., 1606.03498).

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


class InceptionScore(NamedTuple):
    mean: float
    """Over the splits: from 1 (every image alike) to K (sure of each, all classes as often)."""
    deviation: float
    """Standard deviation over the splits, divided by their number, as in the reference."""


def probabilities_of(logits: ArrayLike) -> Array:
    """Softmax of (N, K), in float64."""
    from scipy.special import softmax

    return softmax(feature_array(logits, "logits").astype(np.float64), axis=1)


def inception_score(probabilities: ArrayLike, splits: int = 10) -> InceptionScore:
    """Of probabilities (N, K), as the reference computes it: `splits` consecutive parts, each with its own
    p(y). The order of samples matters: samples sorted by class score too low, so shuffle those first. The
    score depends on N / splits; compare only figures of the same number. Logits: see `probabilities_of`."""
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
