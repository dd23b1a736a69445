"""Kernel distance (KID; Binkowski et al., 1801.01401): the unbiased squared maximum mean discrepancy with the
kernel (x·y / D + 1)³, averaged over random subsets. Unlike the Fréchet distance it has no bias for few
samples.

Shape letters: N, M samples, D numbers of a feature, S samples of a subset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.gaussian import Array, feature_pair


@dataclass(frozen=True)
class KernelDistance:
    mean: float
    """Mean over the subsets. Its expectation is 0 for equal distributions; it can be negative."""
    standard_error: float
    """Standard error of the mean, from the choice of samples and of subsets. Conservative: up to about twice
    too large near 0, correct far from it."""


def kernel_distance(
    features_a: ArrayLike,
    features_b: ArrayLike,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Kernel distance between features (N, D) and (M, D), N and M at least 2. Subsets are drawn without
    repetition, each of `subset_size` samples or as many as the smaller set has.

    The deviation over subsets, which is often reported, is too small an error once subsets overlap, and 0
    where each holds all samples. Here the variance is that of the discrepancy of all samples, to first order
    from each sample's contribution, plus that of drawing a finite number of subsets.
    """
    a, b = feature_pair(features_a, features_b, ("features a", "features b"))
    if subsets < 1 or subset_size < 2:
        raise UserError(
            f"subsets is {subsets} and their size {subset_size}; expected at least one subset of at least 2"
        )
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        subsets = 1  # every subset is the whole
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x, y = (f[random.choice(len(f), size, replace=False)].astype(np.float64) for f in (a, b))
        found.append(_discrepancy(x, y))
    values = np.array([f.value for f in found])
    of_samples = np.mean([f.spread_a / len(a) + f.spread_b / len(b) for f in found])
    of_subsets = values.var(ddof=1) / subsets if subsets > 1 else 0.0
    if subsets == 1 and size < max(len(a), len(b)):
        # Nothing is known of other subsets: the error is that of these S samples.
        of_samples = (found[0].spread_a + found[0].spread_b) / size
    return KernelDistance(float(values.mean()), float(np.sqrt(of_samples + of_subsets)))


class _Discrepancy(NamedTuple):
    value: float
    spread_a: float
    """N times the variance of the discrepancy that comes from the N samples of a."""
    spread_b: float


def _discrepancy(x: Array, y: Array) -> _Discrepancy:
    size = len(x)
    of_x, of_y = (((k := _kernel(f, f)).sum(axis=1) - k.diagonal()) / (size - 1) for f in (x, y))
    both = _kernel(x, y)
    share_x, share_y = of_x - both.mean(axis=1), of_y - both.mean(axis=0)
    return _Discrepancy(
        float(share_x.mean() + share_y.mean()),
        4 * float(share_x.var(ddof=1)),
        4 * float(share_y.var(ddof=1)),
    )


def _kernel(x: Array, y: Array) -> Array:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # 1.4 times as fast at D = 64 as ** 3 and scikit-learn's polynomial_kernel
