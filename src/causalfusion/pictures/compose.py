"""Overview pictures, drawn with Pillow: grids of images, edits beside their originals, texts.

Shape letters: B images, C channels (1 or 3), H and W pixels. Images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.pictures.fonts import Face

Interpolation = Literal["smooth", "nearest"]
Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (30, 34, 40)
BLANK: Colour = (222, 226, 232)
"""Colour of regions that are not generated yet, or are about to be replaced."""
ACCENT: Colour = (240, 120, 20)
"""Colour of the outline of regions that are being generated."""


def to_tiles(images: Tensor, scale: int, interpolation: Interpolation = "smooth") -> list[Image.Image]:
    """RGB pictures of images (B, C, H, W), enlarged `scale` times. Raises UserError for other shapes."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images have shape {tuple(images.shape)}; expected (B, 1 or 3, H, W)")
    values = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    arrays = values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    size = (images.shape[3] * scale, images.shape[2] * scale)
    method = Image.Resampling.BICUBIC if interpolation == "smooth" else Image.Resampling.NEAREST
    return [Image.fromarray(np.ascontiguousarray(array)).resize(size, method) for array in arrays]


def to_image_grid(
    images: Tensor,
    columns: int,
    *,
    scale: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    captions: Sequence[str] | None = None,
    interpolation: Interpolation = "smooth",
) -> Image.Image:
    """Images (B, C, H, W), row by row, in a grid with labels; `captions` are drawn below the images."""
    tiles = to_tiles(images, scale, interpolation)
    return sheet(tiles, columns, row_labels, column_labels, title=title, captions=captions)


def sheet(
    tiles: Sequence[Image.Image],
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    *,
    title: str | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """A grid of tiles of one size, row by row, with texts around them. Labels of columns and captions shrink
    to fit. Raises UserError for no tiles or columns."""
    if not tiles or columns < 1:
        raise UserError(f"a grid of {len(tiles)} images in {columns} columns; expected at least one of each")
    rows, (width, height) = -(-len(tiles) // columns), tiles[0].size
    gap = max(2, min(width, height) // 16)
    title_font, row_font = Face(17), Face(13)
    column_font = fitting_font(column_labels or (), width + gap - 2, 14)
    caption_font = fitting_font(captions or (), width + gap - 2, 13)
    left = gap + max((_text_width(row_font, label) + 8 for label in row_labels or ()), default=0)
    top = gap + (28 if title else 0) + (20 if column_labels else 0)
    pitch_x, pitch_y = width + gap, height + gap + (18 if captions else 0)
    total_width = left + columns * pitch_x
    if title:
        total_width = max(total_width, gap + _text_width(title_font, title) + gap)
    canvas = Image.new("RGB", (total_width, top + rows * pitch_y), PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        title_font.draw(draw, (left, gap), title, INK, "la")
    for column, label in enumerate((column_labels or ())[:columns]):
        centre = left + column * pitch_x + width // 2
        column_font.draw(draw, (centre, top - 4), label, INK, "ms")
    for row, label in enumerate((row_labels or ())[:rows]):
        row_font.draw(draw, (left - 8, top + row * pitch_y + height // 2), label, INK, "rm")
    for index, tile in enumerate(tiles):
        x, y = left + index % columns * pitch_x, top + index // columns * pitch_y
        canvas.paste(tile, (x, y))
        if captions and index < len(captions):
            caption_font.draw(draw, (x + width // 2, y + height + 14), captions[index], INK, "ms")
    return canvas


def beside(pictures: Sequence[Image.Image], gap: int = 24) -> Image.Image:
    """Pictures side by side, aligned at the bottom, `gap` pixels apart."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, max(p.height for p in pictures)), PAPER)
    x = 0
    for picture in pictures:
        canvas.paste(picture, (x, canvas.height - picture.height))
        x += picture.width + gap
    return canvas


def below(pictures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Pictures one below the other, aligned at the left, `gap` pixels apart."""
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (max(p.width for p in pictures), height), PAPER)
    y = 0
    for picture in pictures:
        canvas.paste(picture, (0, y))
        y += picture.height + gap
    return canvas


def framed(picture: Image.Image, margin: int = 16) -> Image.Image:
    """A picture with a white margin, in pixels."""
    canvas = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), PAPER)
    canvas.paste(picture, (margin, margin))
    return canvas


@dataclass(frozen=True)
class Edit:
    """The edits of one region in an `edit_sheet`, one per original."""

    name: str
    mask: Tensor
    """(H, W) bool, True where pixels were regenerated."""
    edited: Tensor
    """(B, C, H, W), one edited image per original."""
    asked: Sequence[str]
    """The new class or prompt of each; "" if it is not to be drawn."""


def edit_sheet(
    originals: Tensor,
    labels: Sequence[str],
    edits: Sequence[Edit],
    *,
    scale: int,
    notes: Sequence[str] | None = None,
) -> Image.Image:
    """A sheet with one original (B, C, H, W) per row and, for every edit, two columns: the part of the
    original that was kept, if any was, and the edited image. `notes` are texts below the edits."""
    blocks = [
        sheet(to_tiles(originals, scale), 1, column_labels=["original"], title=" ", captions=list(labels))
    ]
    for edit in edits:
        tiles, captions = [], []
        after = to_tiles(edit.edited, scale)
        names = ["edited"] if edit.mask.all() else ["kept", "edited"]
        for row, kept in enumerate(to_tiles(originals, scale)):
            if "kept" in names:
                cover(kept, edit.mask, BLANK)
                outline(kept, edit.mask, ACCENT)
                tiles.append(kept)
                captions.append("")
            outline(after[row], edit.mask, ACCENT)
            tiles.append(after[row])
            captions.append(f"asked: {edit.asked[row]}" if edit.asked[row] else "")
        blocks.append(sheet(tiles, len(names), column_labels=names, title=edit.name, captions=captions))
    if notes is not None:
        height = max(block.height for block in blocks)
        texts = [None, *notes]
        blocks = [_with_note(block, height, text) for block, text in zip(blocks, texts, strict=True)]
        tallest = max(block.height for block in blocks)
        blocks = [_extended(block, tallest) for block in blocks]
    return framed(beside(blocks))


def _with_note(block: Image.Image, height: int, text: str | None) -> Image.Image:
    """A picture, extended at the top to a height in pixels, with a text below."""
    canvas = Image.new("RGB", (block.width, height), PAPER)
    canvas.paste(block, (0, height - block.height))
    return canvas if text is None else below([canvas, paragraph(text, block.width)], gap=0)


def _extended(picture: Image.Image, height: int) -> Image.Image:
    """A picture, extended at the bottom to a height in pixels."""
    canvas = Image.new("RGB", (picture.width, height), PAPER)
    canvas.paste(picture, (0, 0))
    return canvas


def cover(tile: Image.Image, cells: Tensor, colour: Colour) -> None:
    """Paint over the True cells, (rows, columns) bool, of a grid that spans the tile, in place."""
    small = Image.fromarray(cells.cpu().numpy().astype(np.uint8) * 255)
    tile.paste(colour, mask=small.resize(tile.size, Image.Resampling.NEAREST))


def outline(tile: Image.Image, cells: Tensor, colour: Colour, width: int = 2) -> None:
    """Draw, in place, the inner border of the region of True cells, (rows, columns) bool, of a grid that
    spans the tile."""
    rows, columns = cells.shape
    step_x, step_y = tile.width // columns, tile.height // rows
    draw = ImageDraw.Draw(tile)
    padded = torch.nn.functional.pad(cells.cpu(), (1, 1, 1, 1), value=False)
    edge = width - 1
    for row, column in cells.cpu().nonzero().tolist():
        x, y = column * step_x, row * step_y
        right, bottom = x + step_x - 1, y + step_y - 1
        for outside, box in (
            (padded[row, column + 1], (x, y, right, y + edge)),
            (padded[row + 2, column + 1], (x, bottom - edge, right, bottom)),
            (padded[row + 1, column], (x, y, x + edge, bottom)),
            (padded[row + 1, column + 2], (right - edge, y, right, bottom)),
        ):
            if not outside:
                draw.rectangle(box, fill=colour)


def fitting_font(texts: Sequence[str], width: int, size: int) -> Face:
    """The largest face, of sizes 7 to `size`, in which every text is at most `width` pixels wide."""
    while size > 7 and any(_text_width(Face(size), text) > width for text in texts):
        size -= 1
    return Face(size)


def _text_width(face: Face, text: str) -> int:
    return round(face.getlength(text))


def with_texts(tiles: Sequence[Image.Image], texts: Sequence[str], size: int = 14) -> list[Image.Image]:
    """The tiles with a text below each, in as many lines as it needs; all of one size."""
    below_each = [paragraph(text, tile.width, size) for tile, text in zip(tiles, texts, strict=True)]
    height = max(picture.height for picture in below_each)
    result = []
    for tile, text in zip(tiles, below_each, strict=True):
        canvas = Image.new("RGB", (tile.width, tile.height + height), PAPER)
        canvas.paste(tile, (0, 0))
        canvas.paste(text, (0, tile.height))
        result.append(canvas)
    return result


def paragraph(text: str, width: int, size: int = 14, max_lines: int = 12) -> Image.Image:
    """A picture of a text, wrapped to `width` pixels; if it has more than `max_lines`, the last ends in
    dots."""
    face, pitch = Face(size), round(size * 1.3)
    lines = wrapped(text, face, width - 4)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1][:-3] + "..."]
    canvas = Image.new("RGB", (width, pitch * len(lines) + 4), PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        face.draw(draw, (2, 2 + row * pitch), line, INK, "la")
    return canvas


def text_tile(text: str, width: int, height: int) -> Image.Image:
    """A text in a box of this size in pixels, in the largest face, of sizes 9 to 20, in which it fits."""
    size, margin = 20, 8
    inside = width - 2 * margin
    while (
        size > 9 and len(wrapped(text, Face(size), inside - 4)) * round(size * 1.3) + 4 > height - 2 * margin
    ):
        size -= 1
    most = max(1, (height - 2 * margin - 4) // round(size * 1.3))
    picture = paragraph(text, inside, size, most)
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(picture, (margin, max(margin, (height - picture.height) // 2)))
    ImageDraw.Draw(canvas).rectangle((0, 0, width - 1, height - 1), outline=BLANK, width=2)
    return canvas


def wrapped(text: str, face: Face, width: int) -> list[str]:
    """The lines, at least one, of a text wrapped to `width` pixels; a word that is wider is broken."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if face.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and face.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
