"""The sample stream of documents: `loader.py` for data whose examples have any number of images.

Shape letters: N images of a batch of documents, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from causalfusion.config.sizes import Fit
from causalfusion.data.document_source import DocumentSource
from causalfusion.data.loader import StreamReader, to_float
from causalfusion.data.picture import UnreadableImage
from causalfusion.data.reader import MIN_READ, Samples, stacked, warn_unreadable
from causalfusion.data.transforms import fit_image
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed

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


class DocumentReader(Dataset):
    """Reads documents of `source`, their images brought to size as `fit` says. One with an unreadable image
    is replaced by another of the indices `pool`, chosen by its own index alone: every process chooses the
    same."""

    def __init__(self, source: DocumentSource, fit: Fit, pool: np.ndarray) -> None:
        self.source, self.fit, self.pool = source, fit, pool

    def __getitem__(self, samples: Samples) -> DocumentReads | UserError:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.read(samples)
        except UserError as error:  # returned, as a DataLoader would wrap a raised one in a traceback
            return error

    def read(self, samples: Samples) -> DocumentReads:
        failures, used = list[tuple[int, str]](), list[int]()
        documents, images, owners = list[Elements](), list[np.ndarray](), list[int]()
        for index, epoch in zip(samples.indices.tolist(), samples.epochs.tolist(), strict=True):
            current, elements = self._read(index, epoch, failures)
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

    def _read(
        self, index: int, epoch: int, failures: list[tuple[int, str]]
    ) -> tuple[int, tuple[str | np.ndarray, ...]]:
        """(index, elements) of this document or its replacement. Raises UserError if none can be read."""
        current = index
        for attempt in range(MIN_READ):
            try:
                elements = self.source.read(current, epoch).elements
                return current, tuple(e if isinstance(e, str) else self._fitted(e) for e in elements)
            except UnreadableImage as error:
                failures.append((current, str(error)))
            current = int(self.pool[derive_seed(index, "replacement", attempt) % len(self.pool)])
        raise UserError(
            f"none of {MIN_READ} documents tried can be read, the last: {failures[-1][1]}; repair the data"
        )

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
    nothing = np.zeros(len(indices), np.int64)
    samples = Samples(np.asarray(indices, np.int64), nothing.astype(bool), nothing)
    reads = reader.read(samples)
    for _, name in reads.failures:
        warn_unreadable(name)
    return DocumentExamples(to_float(reads.pixels), reads.documents, np.arange(len(indices)))
