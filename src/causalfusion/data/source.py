"""What a data set is: images by index, with a label, captions, both or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from causalfusion.errors import UserError

MAX_CLASSES = 1_000_000
"""More is taken for a mistake: each class has a name and a row of embeddings."""


@dataclass(frozen=True)
class Example:
    image: np.ndarray
    """(H, W, C) uint8."""
    label: int | None = None
    captions: tuple[str, ...] = ()
    """All that the source has for the image; which one is used is drawn (`captions.draw_caption`)."""


class UnreadableImage(Exception):
    """An image that cannot be decoded: it is counted, named and skipped."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


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
        """A short hash of what identifies the data: names, sizes, counts; cheap."""
        ...


def numbered_classes(labels: np.ndarray, where: str) -> list[str]:
    """Names for labels that have none: "0", "1", ... Raises UserError for labels that cannot be classes."""
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{where}: a label is {wrong}; expected classes numbered from 0, below {MAX_CLASSES}")
    return [str(number) for number in range(highest + 1)]


def decode_image(content: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB from an encoded image, upright as its EXIF data say. Grey and palette images are
    converted, transparency is dropped (both as in ADM), 16 bits become 8."""
    import io

    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # `convert` would cut 16 bits off at 255
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            if "transparency" in image.info:  # Pillow warns where it goes straight to RGB
                return np.array(image.convert("RGBA").convert("RGB"))
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UnreadableImage(name, error) from error
