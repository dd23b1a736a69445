"""The elements of documents: texts and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A text of a document, without its markers."""

    ids: tuple[int, ...] = ()
    learn: bool = True
    """Its tokens are targets of training; False for a dropped caption."""
    open: bool = False
    """It has no end marker yet, as it is still being written."""


@dataclass(frozen=True)
class Image:
    """An image of a document."""

    row: int
    """Index into the batch's N images."""


@dataclass(frozen=True)
class ImageToCome:
    """The begin marker of an image that is to be generated; the last element of its document."""


Element = Text | Image | ImageToCome
Document = Sequence[Element]
