"""The diffusion loss with AR weights, and the cross-entropy of text.

Shape letters: B images or rows, L image tokens, R noised copies of every AR step, P token dimension, n text
tokens.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def weighted_mean(error: Tensor, weights: Tensor) -> Tensor:
    """Mean of error (B, R*L, P) times AR weights (1 or B, L), both in the plan's order."""
    copies = error.shape[1] // weights.shape[1]
    return (error * weights.repeat(1, copies)[:, :, None]).mean()


def text_cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Cross-entropy in nats, (B, n) float32, of logits (B, n, vocabulary) and targets (B, n); 0 where the
    target is `ignored`."""
    return F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=ignored, reduction="none")
