"""Fine-tuning for captions, as a training with another objective: clean images in, their captions out.

Shape letters: N images, L image tokens, P token dimension, n text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from causalfusion.documents import NO_TARGET, pack_context
from causalfusion.losses import text_cross_entropy
from causalfusion.train.arranged import Arranged, Errors
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective


@dataclass(frozen=True, kw_only=True)
class CaptionObjective(Objective):
    """The cross-entropy of texts behind clean images, which are not noised. The sequence is that with which a
    model writes a caption (`pack_context`)."""

    def errors(self, model: nn.Module, piece: Arranged, num_text: int = 0) -> Errors:
        """Errors of the text alone; there are none of images."""
        assert piece.layout is not None, "captions are text"
        layout, config = piece.layout.filled(num_text), self.config.model
        sequence = pack_context(
            layout,
            piece.labels,
            config.num_condition_tokens,
            piece.tokens,
            piece.plan.grid_width,
            self.config.text.image_context,
            piece.plan.grid,
        )
        predictions = model(sequence, backend=self.config.train.attention)
        text = text_cross_entropy(predictions.text, layout.text_targets, NO_TARGET)
        return Errors(predictions.image.flatten(0, 1), text)  # none, but in the graph

    def _ar_steps(self, draws: Draws, count: int) -> list[int]:
        return [1] * count
