"""Fréchet distance between two sets of features, each seen as a Gaussian (FID; Heusel et al., 1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from causalfusion.errors import UserError

Array = NDArray[np.float64]


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Of features (N, D) and (M, D), N and M at least 2, in float64; 0 for equal sets."""
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            raise UserError(
                f"features have the shapes {a.shape} and {b.shape}; expected (N, D) and (M, D), N and M > 1"
            )
        if not np.isfinite(features).all():
            raise UserError("features are not finite; expected numbers: look for broken images")
    return frechet_distance_of_gaussians(*_mean_and_covariance(a), *_mean_and_covariance(b))


def frechet_distance_of_gaussians(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|m_a - m_b|² + tr(A + B - 2 (AB)^½), for means (D,) and covariances (D, D).

    AB is not symmetric, and its square root carries complex residue where a covariance is singular. The trace
    equals that of the symmetric (A^½ B A^½)^½, the sum of the singular values of A^½ B^½: real, and without
    the square root of rounding errors that the eigenvalues 0 of a singular product would leave.
    """
    overlap = np.linalg.svd(_symmetric_root(cov_a) @ _symmetric_root(cov_b), compute_uv=False).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * overlap
    return max(float(distance), 0.0)


def _symmetric_root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T


def _mean_and_covariance(features: Array) -> tuple[Array, Array]:
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
