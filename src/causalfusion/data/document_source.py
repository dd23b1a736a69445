"""The interface of sources of documents: texts and images in any order, by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from causalfusion.data.source import Example, spread
from causalfusion.errors import UserError

_WITH_IMAGES = 2048
"""Documents whose images tell of all of them."""


@dataclass(frozen=True)
class DocumentExample:
    """A document as it is read."""

    elements: tuple[str | np.ndarray, ...]
    """Texts, and images (H, W, C) uint8."""


class DocumentSource(Protocol):
    name: str

    def __len__(self) -> int: ...

    def read(self, index: int, epoch: int = 0) -> DocumentExample:
        """One document, in a source that makes its documents up anew in every epoch that of the epoch. Raises
        UnreadableImage if one of its images is damaged."""
        ...

    def texts(self, index: int) -> tuple[str, ...]:
        """The texts of a document, in order."""
        ...

    def images_of(self, index: int) -> int:
        """Number of images of a document."""
        ...

    def fingerprint(self) -> str:
        """A short hash that identifies the data by the names, sizes and times of their files; cheap."""
        ...


class DocumentImages:
    """The first image of each document that has one, as a source of images: from these, statistics are
    measured."""

    has_captions = False

    def __init__(self, source: DocumentSource, documents: np.ndarray) -> None:
        """`documents`: indices into the source of documents that have an image."""
        self.name, self.class_names = source.name, list[str]()
        self._source, self._documents = source, documents

    def __len__(self) -> int:
        return len(self._documents)

    def read(self, index: int) -> Example:
        elements = self._source.read(int(self._documents[index])).elements
        return Example(next(e for e in elements if not isinstance(e, str)))

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def documents_with_images(source: DocumentSource, indices: np.ndarray | None = None) -> np.ndarray:
    """At most 2048 of these documents (by default of all) that have an image, evenly spread. Raises UserError
    if none has."""
    indices = np.arange(len(source)) if indices is None else indices
    chosen = spread(indices, _WITH_IMAGES)
    found = [index for index in chosen.tolist() if source.images_of(index)]
    found = found or [index for index in indices.tolist() if source.images_of(index)][:_WITH_IMAGES]
    if not found:
        raise UserError(f"no document of {source.name} has an image; expected documents of texts and images")
    return np.array(found)
