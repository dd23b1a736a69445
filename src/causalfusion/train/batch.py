"""A batch of clean tokens with what is known of its images.

Shape letters: B examples, L image tokens (of the longest image), P token dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.codec.tokenizer import MARKERS_OF_EXAMPLE
from causalfusion.train.document_batch import DocumentBatch


@dataclass(frozen=True)
class TokenBatch:
    """A batch from the feed: this process's share of a train step's images."""

    tokens: Tensor
    """(B, L, P) clean, raster order."""
    labels: Tensor
    """(B,) int64."""
    sample_indices: Tensor
    """(B,) int64 places in the sample stream."""
    captions: tuple[list[int], ...] | None = None
    """Token ids of the captions; None: a run without text."""
    grid: tuple[int, int] | None = None
    """Rows and columns of tokens of all its images; None: those of the model."""
    documents: DocumentBatch | None = None
    """Of a batch of documents (`DocumentTokens`); None: an image is an example."""
    grids: tuple[tuple[int, int], ...] | None = None
    """Rows and columns of tokens of each image, where they have some of their own; the tokens of shorter ones
    are filled up to L."""
    features: Tensor | None = None
    """(B, L, E) float16 of a frozen encoder, raster order, in a run with alignment."""

    def slice(self, rows: slice) -> TokenBatch:
        """Some of the examples, for a micro-batch."""
        captions = None if self.captions is None else self.captions[rows]
        grids = None if self.grids is None else self.grids[rows]
        longest = None if grids is None else max(height * width for height, width in grids)
        return replace(
            self,
            tokens=self.tokens[rows, :longest],
            labels=self.labels[rows],
            sample_indices=self.sample_indices[rows],
            captions=captions,
            grids=grids,
            features=None if self.features is None else self.features[rows],
        )

    def image_rows(self, rows: slice) -> slice:
        """The rows of the images of some of the examples."""
        return rows

    @property
    def num_text(self) -> int:
        """Text tokens, markers included."""
        return sum(len(caption) + MARKERS_OF_EXAMPLE for caption in self.captions or ())

    def to(self, device: torch.device) -> TokenBatch:
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device))


def together(parts: Iterable[TokenBatch], num_images: int) -> Iterator[TokenBatch]:
    """Batches of so many images, each from the next parts of one grid."""
    held: list[TokenBatch] = []
    for part in parts:
        held.append(part)
        if sum(len(each.labels) for each in held) == num_images:
            yield _together(held)
            held = []


def _together(parts: list[TokenBatch]) -> TokenBatch:
    """The images of parts by their places in the stream, shorter ones filled up with zeros."""
    places = torch.cat([part.sample_indices for part in parts])
    order = places.argsort()
    longest = max(part.tokens.shape[1] for part in parts)
    tokens = torch.cat([F.pad(p.tokens, (0, 0, 0, longest - p.tokens.shape[1])) for p in parts])
    grids = [part.grid for part in parts for _ in part.labels]
    return TokenBatch(
        tokens[order.to(tokens.device)],
        torch.cat([part.labels for part in parts])[order.to(parts[0].labels.device)],
        places[order],
        grids=tuple(grid for grid in (grids[i] for i in order.tolist()) if grid is not None),
    )
