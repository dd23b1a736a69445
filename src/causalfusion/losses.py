"""The diffusion loss with AR weights (PAPER section 4).

Shape letters: B images, L image tokens, R noised copies of every AR step, P token dimension.
"""

from __future__ import annotations

from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B, R*L, P) float32, whatever precision the model ran in."""
    return (prediction.float() - target.float()).square()


def weighted_mean(error: Tensor, weights: Tensor) -> Tensor:
    """mean(error * w): error (B, R*L, P), AR weights (1 or B, L) in the plan's order."""
    copies = error.shape[1] // weights.shape[1]
    return (error * weights.repeat(1, copies)[:, :, None]).mean()
