"""What a data set is: images by index, with a label, captions, both or neither."""

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
    """All that the source has for the image; which one is used is drawn (`captions.draw_caption`)."""


class ImageSource(Protocol):
    name: str
    class_names: list[str]
    """Empty where there are no labels."""
    has_captions: bool
    """Every image has at least one, or none has."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example:
        """Raises `UnreadableImage` for a damaged one."""
        ...

    def fingerprint(self) -> str:
        """A short hash of what identifies the data: names, sizes and times of files; cheap."""
        ...


@runtime_checkable
class TracedSource(Protocol):
    """A source of files: one that can tell which of them changed."""

    def image_name(self, index: int) -> str:
        """For messages."""
        ...

    def content_hash(self, index: int) -> bytes:
        """16 bytes, of all that `read` reads. Raises UnreadableImage where it cannot be read at all."""
        ...

    def sizes_fingerprint(self) -> str:
        """The fingerprint of caches made before times of files counted."""
        ...


def digest(*parts: object) -> bytes:
    """16 bytes: a hash of byte strings, numbers and names."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.digest()


UNREADABLE = bytes(16)
"""Stands for the content hash of what cannot be read."""


def content_hashes(source: TracedSource, indices: Iterable[int]) -> np.ndarray:
    """(B, 16) uint8."""
    found = []
    for index in indices:
        try:
            found.append(source.content_hash(index))
        except UnreadableImage:
            found.append(UNREADABLE)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)
