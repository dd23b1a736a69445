"""Heads of keys and values that several query heads share."""

from __future__ import annotations

from torch import Tensor


def repeat_heads(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B, G, T, H) for each of the heads of q (B, N, Q, H): head j serves the query heads from
    j N/G on."""
    groups = q.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)
