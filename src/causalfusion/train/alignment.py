"""Alignment of a layer with a frozen encoder (REPA, 2410.06940), as a training with another objective.

The noised tokens that are predicted, of all AR steps, leave the layer and go through a projector, trained
with the model; the cosine similarity with the encoder's features of the clean image at the same places is to
be 1.

Shape letters: B examples, N images, L image tokens, E features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from torch.nn import functional as F

from causalfusion.train.arrange import used_images
from causalfusion.train.arranged import Arranged, Errors
from causalfusion.train.batch import TokenBatch
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective


@dataclass(frozen=True, kw_only=True)
class AlignedObjective(Objective):
    """The errors of the prediction, and those of the alignment beside them."""

    def arrange(self, batch: TokenBatch, draws: Draws, *, read: bool | None = None) -> Arranged:
        features = batch.features
        if features is not None and self.markers is not None:
            features = features[used_images(draws.text).to(features.device)]
        return replace(super().arrange(batch, draws, read=read), features=features)

    def errors(self, model: nn.Module, piece: Arranged, num_text: int = 0) -> Errors:
        """Squared errors, those of text, and 1 - cosine similarity of each image, where it has features."""
        if piece.features is None:
            return super().errors(model, piece, num_text)
        first = self.first_asked(piece)
        noised = piece.noised_from(first, self.process)
        predictions, layout = self.run(model, piece, noised, num_text)
        found, text = self.read(predictions, piece, noised, layout)
        assert predictions.projected is not None, "a run with alignment has a projector"
        projected = self.of_images(predictions.projected, piece, layout, noised.noised.shape[1])
        similarity = F.cosine_similarity(projected.float(), piece.features_from(first).float(), dim=-1)
        return Errors(self.process.errors(found, noised), text, 1 - similarity.mean(1))
