"""Images as HTML: tiles side by side, each a PNG of the image's own pixels with what is not finished drawn
over it.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from causalfusion.app.frames import Frame
from causalfusion.generate.store import png_of

PIXELS_SEEN = 128
"""Images with fewer pixels on a side are enlarged without smoothing, so that each pixel is seen."""


def tiles(frame: Frame, *, labels: Sequence[str] = (), chosen: int | None = None) -> str:
    """The images of a frame, with a label below each; `chosen`: the index of the one that is marked."""
    parts = []
    for index, pixels in enumerate(frame.pixels):
        label = labels[index] if index < len(labels) else f"Picture {index + 1}"
        marks = "".join(
            _cells(mask[index], name)
            for mask, name in ((frame.not_begun, "cf-not-begun"), (frame.in_progress, "cf-in-progress"))
            if mask is not None and mask[index].any()
        )
        parts.append(_tile(index, pixels, marks, label, chosen=index == chosen))
    columns = len(parts) if len(parts) <= 3 else math.ceil(math.sqrt(len(parts)))
    return f'<div class="cf-tiles" style="--cf-columns:{columns}">{"".join(parts)}</div>'


def placeholder(text: str) -> str:
    """What stands where images will be."""
    return f'<div class="cf-empty">{escape(text)}</div>'


def data_uri(pixels: np.ndarray) -> str:
    """An image (H, W, C) uint8 as the address of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png_of(pixels)).decode("ascii")


def _tile(index: int, pixels: np.ndarray, marks: str, label: str, *, chosen: bool) -> str:
    height, width = pixels.shape[:2]
    classes = "cf-tile" + " cf-chosen" * chosen
    drawn = "cf-crisp" if max(height, width) < PIXELS_SEEN else ""
    name = escape(label, quote=True)
    return (
        f'<figure class="{classes}" data-index="{index}">'
        f'<div class="cf-picture" style="aspect-ratio:{width}/{height}">'
        f'<img class="{drawn}" src="{data_uri(pixels)}" width="{width}" height="{height}" alt="{name}">'
        f"{marks}</div><figcaption>{name}</figcaption></figure>"
    )


def _cells(cells: np.ndarray, name: str) -> str:
    """True cells (rows, columns) as a shape over the whole image."""
    rows, columns = cells.shape
    path = "".join(
        f"M{start} {row}h{end - start}v1h{start - end}z"
        for row in range(rows)
        for start, end in _runs(cells[row])
    )
    return (
        f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="{name}" d="{path}"/></svg>'
    )


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each run of True values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
