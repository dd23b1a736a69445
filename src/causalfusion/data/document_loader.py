"""The sample stream of documents: `loader.py` for data whose examples have any number of images.

Shape letters: N images of a batch of documents, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from causalfusion.config.sizes import Fit
from causalfusion.data.document_source import DocumentSource
from causalfusion.data.loader import StreamReader, to_float
from causalfusion.data.reader import ReplacingReader, Samples, stacked, warn_unreadable
from causalfusion.data.transforms import fit_image

Elements = tuple[str | int, ...]
"""The elements of a document: texts, and images by their number among those of the batch."""


@dataclass(frozen=True)
class DocumentReads:
    """A batch of documents as a worker returns it."""

    pixels: np.ndarray
    """(N, H, W, C) uint8; (0, 1, 1, 3) without images."""
    documents: list[Elements]
    indices: np.ndarray
    """Indices into the source of the documents that were read, replacements included."""
    failures: list[tuple[int, str]]
    """(index into the source, name and reason) of each unreadable document that was tried."""


@dataclass(frozen=True)
class DocumentExamples:
    """A batch of documents of the stream."""

    images: Tensor
    """(N, C, H, W) float32 in [-1, 1], those of one document after those of another."""
    documents: list[Elements]
    places: np.ndarray
    """Positions of the documents in the sample stream."""


class DocumentReader(ReplacingReader[DocumentReads]):
    """Reads documents of `source`, their images brought to size as `fit` says. One with an unreadable image
    is one that cannot be read."""

    examples = "documents"

    def __init__(self, source: DocumentSource, fit: Fit, pool: np.ndarray) -> None:
        super().__init__(pool)
        self.source, self.fit = source, fit

    def read(self, samples: Samples) -> DocumentReads:
        failures, used = list[tuple[int, str]](), list[int]()
        documents, images, owners = list[Elements](), list[np.ndarray](), list[int]()
        for index, epoch in zip(samples.indices.tolist(), samples.epochs.tolist(), strict=True):
            current, elements = self.first_readable(index, partial(self._elements, epoch=epoch), failures)
            numbered = list[str | int]()
            for element in elements:
                if not isinstance(element, str):
                    images.append(element)
                    owners.append(current)
                numbered.append(element if isinstance(element, str) else len(images) - 1)
            documents.append(tuple(numbered))
            used.append(current)
        pixels = stacked(images, owners) if images else np.zeros((0, 1, 1, 3), np.uint8)
        return DocumentReads(pixels, documents, np.array(used, np.int64), failures)

    def _elements(self, index: int, epoch: int) -> tuple[str | np.ndarray, ...]:
        elements = self.source.read(index, epoch).elements
        return tuple(e if isinstance(e, str) else self._fitted(e) for e in elements)

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        fitted = fit_image(image, self.fit)
        assert fitted is not None, "only images of sizes of their own may be too small"
        return fitted


class DocumentLoader(StreamReader[DocumentReads]):
    """Batches of the stream: the documents of each that belong to this process."""

    def documents(self, documents_seen: int) -> Iterator[DocumentExamples]:
        """This process's part of the batches that begin at `documents_seen`, without end. Raises UserError if
        too many documents are unreadable."""
        for reads, places in self.reads(documents_seen):
            yield DocumentExamples(to_float(reads.pixels), reads.documents, places)


def load_documents(reader: DocumentReader, indices: np.ndarray) -> DocumentExamples:
    """These documents, at their places among them. A warning names unreadable ones, which are replaced."""
    reads = reader.read(Samples.plain(indices))
    for _, name in reads.failures:
        warn_unreadable(name)
    return DocumentExamples(to_float(reads.pixels), reads.documents, np.arange(len(indices)))
