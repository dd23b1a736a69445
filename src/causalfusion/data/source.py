"""The interface of data sets: images by index, each with an optional label and captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from causalfusion.data.picture import UnreadableImage, decode_image

__all__ = ["Example", "ImageSource", "UnreadableImage", "decode_image"]


@dataclass(frozen=True)
class Example:
    image: np.ndarray
    """(H, W, C) uint8."""
    label: int | None = None
    captions: tuple[str, ...] = ()
    """All captions of the image; training draws one of them (`captions.draw_caption`)."""


class ImageSource(Protocol):
    name: str
    class_names: list[str]
    """Empty for data without labels."""
    has_captions: bool
    """True if every image has at least one caption, False if none has."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example:
        """One image with its label and captions. Raises UnreadableImage if it is damaged."""
        ...

    def fingerprint(self) -> str:
        """A short hash that identifies the data by the names, sizes and times of their files; cheap."""
        ...


@runtime_checkable
class TracedSource(Protocol):
    """A source of files that can tell which of them changed."""

    def image_name(self, index: int) -> str:
        """The image's name in messages."""
        ...

    def content_hash(self, index: int) -> bytes:
        """A hash, 16 bytes, of all that `read` reads. Raises UnreadableImage."""
        ...

    def sizes_fingerprint(self) -> str:
        """The fingerprint in caches of the earlier format, which ignores the times of files."""
        ...


@runtime_checkable
class AnnotatedSource(Protocol):
    """A source that can tell what goes with an image without decoding it."""

    def label(self, index: int) -> int | None:
        """The label that `read` gives."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions that `read` gives. Raises UnreadableImage where they are damaged."""
        ...


def label_of(source: ImageSource, index: int) -> int | None:
    """An image's label; the image is decoded only where the source cannot tell without. Raises
    UnreadableImage."""
    return source.label(index) if isinstance(source, AnnotatedSource) else source.read(index).label


def captions_of(source: ImageSource, index: int) -> tuple[str, ...]:
    """All captions of an image, which is decoded only where the source cannot tell without. Raises
    UnreadableImage."""
    return source.captions(index) if isinstance(source, AnnotatedSource) else source.read(index).captions


def digest(*parts: object) -> bytes:
    """A hash, 16 bytes, of byte strings, numbers and names."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.digest()


def spread(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of these indices, evenly spread."""
    return indices[:: -(-len(indices) // most)]


UNREADABLE = bytes(16)
"""The content hash of an image that cannot be read."""


def content_hashes(source: TracedSource, indices: Iterable[int]) -> np.ndarray:
    """Content hashes of these images, (B, 16) uint8; UNREADABLE for an unreadable one."""
    found = []
    for index in indices:
        try:
            found.append(source.content_hash(index))
        except UnreadableImage:
            found.append(UNREADABLE)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)
