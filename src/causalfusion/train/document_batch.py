"""Documents of a batch in training: cut to the room of the model, with the texts that a draw drops.

Shape letters: B documents, N images of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causalfusion.documents import Document, Element, Image, Text
from causalfusion.rng import derive_seed

IMAGES_OF_DOCUMENT = 2**20
"""More than the images of any document: image i of the document at place n of the sample stream draws as
number n * IMAGES_OF_DOCUMENT + i."""


@dataclass(frozen=True)
class DocumentBatch:
    """The documents of a batch. Its N images stand in their order, one document's after another's."""

    documents: tuple[Document, ...]
    """Images by their row among those of the batch."""
    whole: tuple[bool, ...]
    """True for a document that ends where it ends in the data, not where it was cut."""
    places: tuple[int, ...]
    """Positions in the sample stream."""

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def num_images(self) -> int:
        """N."""
        return sum(map(_count_images, self.documents))

    @property
    def num_text(self) -> int:
        """Text tokens of all documents, markers included."""
        return sum(map(text_tokens, self.documents)) + sum(self.whole)

    def rows_of(self, documents: slice) -> slice:
        """The rows of the images of some of the documents, which stand next to each other."""
        counts = list(map(_count_images, self.documents))
        first, stop, _ = documents.indices(len(self))
        return slice(sum(counts[:first]), sum(counts[:stop]))

    def slice(self, documents: slice) -> DocumentBatch:
        """Some of the documents, with their images numbered from 0."""
        first = self.rows_of(documents).start
        numbered = tuple(
            tuple(Image(e.row - first) if isinstance(e, Image) else e for e in document)
            for document in self.documents[documents]
        )
        return DocumentBatch(numbered, self.whole[documents], self.places[documents])

    def without(self, dropped: Sequence[bool]) -> list[Document]:
        """The documents; of those that are dropped (B,), all texts before the last image are empty, as in the
        prompt that guidance leads away from."""
        return [
            _emptied(document) if drop else document
            for document, drop in zip(self.documents, dropped, strict=True)
        ]

    @property
    def followed(self) -> Tensor:
        """(N,) bool: the images after which their document goes on."""
        rows = [isinstance(e, Image) and n < len(d) for d in self.documents for n, e in enumerate(d, 1)]
        is_image = [isinstance(e, Image) for document in self.documents for e in document]
        return torch.tensor(
            [row for row, image in zip(rows, is_image, strict=True) if image], dtype=torch.bool
        )


def _emptied(document: Document) -> Document:
    last = max((n for n, e in enumerate(document) if isinstance(e, Image)), default=0)
    return tuple(
        replace(e, ids=(), learn=False) if isinstance(e, Text) and n < last else e
        for n, e in enumerate(document)
    )


def sample_index(place: int, image: int) -> int:
    """The number by which an image of the document at a place of the stream draws."""
    return place * IMAGES_OF_DOCUMENT + image


def drops_texts(rate: float, *, seed: int, place: int) -> bool:
    """True if the document at this place of the stream is trained on without the texts before its images."""
    return derive_seed(seed, "document", place) < rate * 2**63


def text_tokens(document: Document) -> int:
    """Text tokens of a document, markers included, but for its end marker."""
    return sum(_tokens_of(element) for element in document)


def cut(document: Sequence[Element], max_text_tokens: int, max_images: int) -> tuple[Document, bool]:
    """(a document, or as many of its elements as a sequence has room for; True if it is whole). A text of
    which only a part fits is cut, and left open."""
    kept, room, images = list[Element](), max_text_tokens - 1, max_images  # 1 is left for the end marker
    for element in document:
        needed = _tokens_of(element)
        images -= isinstance(element, Image)
        if images < 0:
            return tuple(kept), False
        if needed > room:
            if isinstance(element, Text) and room > 1:  # its begin marker, and at least one token
                kept.append(Text(element.ids[: room - 1], open=True))
            return tuple(kept), False
        kept.append(element)
        room -= needed
    return tuple(kept), True


def _tokens_of(element: Element) -> int:
    return len(element.ids) + 2 - element.open if isinstance(element, Text) else 2


def _count_images(document: Document) -> int:
    return sum(isinstance(element, Image) for element in document)
