"""What a data set is: images by index, with a label, captions, both or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from causalfusion.data.picture import UnreadableImage, decode_image
from causalfusion.errors import UserError

__all__ = ["Example", "ImageSource", "UnreadableImage", "decode_image", "numbered_classes"]

MAX_CLASSES = 1_000_000
"""More is taken for a mistake: each class has a name and a row of embeddings."""


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
        """A short hash of what identifies the data: names, sizes, counts; cheap."""
        ...


def numbered_classes(labels: np.ndarray, where: str) -> list[str]:
    """Names for labels that have none: "0", "1", ... Raises UserError for labels that cannot be classes."""
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{where}: a label is {wrong}; expected classes numbered from 0, below {MAX_CLASSES}")
    return [str(number) for number in range(highest + 1)]
