"""What a data set is: images by index, with a label, a caption, both or neither."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Example:
    image: np.ndarray
    """(H, W, C) uint8."""
    label: int | None = None
    caption: str | None = None


class UnreadableImage(Exception):
    """An image that cannot be decoded: it is counted, named and skipped."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


class ImageSource(Protocol):
    name: str
    class_names: list[str]
    """Empty where there are no labels."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example:
        """Raises `UnreadableImage` for a damaged one."""
        ...

    def fingerprint(self) -> str:
        """A short hash of what identifies the data: names, sizes, counts; cheap."""
        ...


def hash_of(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def decode_image(content: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB from an encoded image; grey, palette and transparent ones are converted."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UnreadableImage(name, error) from error
