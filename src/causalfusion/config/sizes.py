"""Sizes of images: WIDTHxHEIGHT in words, and the size that a picture of any size gets.

A cell is the square of pixels that one token holds: the patch size times the autoencoder's downsampling.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from causalfusion.errors import UserError, check

MAX_SIDE = 65_535


def parse_size(text: str, setting: str, expected: str = "") -> tuple[int, int]:
    """(height, width) in pixels of a size in words: WIDTHxHEIGHT, or one number, the side of a square. Raises
    UserError that begins with the name of the setting and says what was `expected`."""
    found = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text.strip())
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    fits = 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE
    expected = expected or f"WIDTHxHEIGHT in pixels, such as 320x192, each from 1 to {MAX_SIDE}"
    check(fits, setting, text, expected)
    return height, width


def size_text(height: int, width: int) -> str:
    """WIDTHxHEIGHT."""
    return f"{width}x{height}"


@dataclass(frozen=True)
class Fit:
    """How pictures are brought to the sizes of a model's images."""

    height: int = 0
    width: int = 0
    """Pixels of all images; 0, with `max_area` 0: pictures stay as they are."""
    max_area: int = 0
    """Instead: pictures keep their shape, and are scaled down to at most so many pixels."""
    cell: int = 1
    """With `max_area`: sides become multiples of it, by cutting off what is too much."""

    def size_of(self, height: int, width: int) -> tuple[int, int] | None:
        """(height, width) of the image that a picture of this size gives; None for a picture that is smaller
        than one cell."""
        if not self.max_area:
            return (self.height, self.width) if self.height else (height, width)
        cell = self.cell
        if min(height, width) < cell:
            return None
        scale = min(1.0, math.sqrt(self.max_area / (height * width)))
        # A small addition, so that a side which is a whole number of cells is not rounded below it.
        rows, columns = (max(int(side * scale / cell + 1e-9), 1) for side in (height, width))
        most = max(self.max_area // cell**2, 1)
        return min(rows, most) * cell, min(columns, most) * cell


def default_side(max_area: int, cell: int) -> int:
    """Side of the largest square of whole cells within an area. Raises UserError if there is none."""
    cells = math.isqrt(max_area) // cell
    if not cells:
        raise UserError(
            f"data.max_area is {max_area}; expected at least {cell**2}, the pixels of one token ({cell}x"
            f"{cell})"
        )
    return cells * cell
