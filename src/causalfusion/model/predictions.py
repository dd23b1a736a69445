"""What a model returns.

Shape letters: B rows, n tokens of a segment, P token dimension, D width, E features, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Predictions(NamedTuple):
    image: Tensor
    """(B, n, P) for the noised tokens, in their order in the sequence; with a per-token head, for those of
    the sequence's `denoising`."""
    text: Tensor | None = None
    """(B, n, vocabulary) logits of what follows each text token; None where there is no text."""
    condition: Tensor | None = None
    """(B, n, D) conditions of the tokens that are asked for; None without a per-token head."""
    projected: Tensor | None = None
    """(B, n, E) what a projector reads of the noised tokens; None without one (`model/projector.py`)."""
    classes: Tensor | None = None
    """(B, K) logits of the classes of images; None without a classifier."""
