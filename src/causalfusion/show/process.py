"""A picture of how one image is generated: AR steps across, diffusion steps down.

Shape letters: L image tokens, P token dimension, B images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from causalfusion.generate.tokens import StepEvent
from causalfusion.pictures.compose import (
    ACCENT,
    BLANK,
    INK,
    PAPER,
    Interpolation,
    below,
    cover,
    framed,
    outline,
    sheet,
    to_tiles,
)
from causalfusion.pictures.fonts import Face

_FINISHED_SWATCH = (60, 66, 78)


@dataclass(frozen=True)
class _Snapshot:
    canvas: Tensor
    """(L, P), raster order: tokens that are finished or in progress; 0 for the others."""
    finished: Tensor
    """(L,) bool."""
    in_progress: Tensor
    """(L,) bool: tokens of the current AR step."""
    event: StepEvent


class ProcessRecorder:
    """A `watch` callback for `Pipeline.generate` that records one image of the batch.

    recorder = ProcessRecorder(num_tokens, token_dim)
    pipeline.generate([3], config, watch=recorder)
    recorder.draw(pipeline.codec.decode_tokens, grid_height, grid_width, scale=10)
    """

    def __init__(self, num_tokens: int, token_dim: int, *, rows: int = 6, image: int = 0) -> None:
        self.rows, self.image = rows, image
        self._tokens = torch.zeros(num_tokens, token_dim)
        self._finished = torch.zeros(num_tokens, dtype=torch.bool)
        self.snapshots: list[list[_Snapshot]] = []
        """Snapshots by AR step, then by recorded diffusion step."""

    def __call__(self, event: StepEvent) -> None:
        if event.diffusion_step not in self._kept_steps(event.num_diffusion_steps):
            return
        positions = event.positions[self.image].cpu()
        canvas = self._tokens.clone()
        canvas[positions] = event.tokens[self.image].float().cpu()
        in_progress = torch.zeros_like(self._finished)
        in_progress[positions] = True
        if len(self.snapshots) < event.ar_step:
            self.snapshots.append([])
        self.snapshots[-1].append(_Snapshot(canvas, self._finished.clone(), in_progress, event))
        if event.diffusion_step == event.num_diffusion_steps:
            self._tokens, self._finished = canvas, self._finished | in_progress

    def _kept_steps(self, count: int) -> list[int]:
        """Up to `rows` diffusion steps of 1..count, evenly spaced, with the first and the last."""
        return torch.linspace(1, count, min(self.rows, count)).round().int().tolist()

    def draw(
        self,
        decode: Callable[[Tensor], Tensor],
        grid_height: int,
        grid_width: int,
        *,
        scale: int,
        title: str | None = None,
        interpolation: Interpolation = "nearest",
    ) -> Image.Image:
        """A picture of the recorded process. `decode` turns tokens (B, L, P), in raster order, into images
        (B, C, H, W)."""
        columns = self.snapshots
        images = decode(torch.stack([s.canvas for column in columns for s in column]))
        tiles = iter(to_tiles(images, scale, interpolation))
        drawn = [[_mark(next(tiles), s, grid_height, grid_width) for s in column] for column in columns]
        height = max(len(column) for column in drawn)
        blank = Image.new("RGB", drawn[0][0].size, PAPER)
        # Shorter columns are aligned at the bottom, so that every AR step is finished in the last row.
        filled = [[blank] * (height - len(column)) + column for column in drawn]
        across = [filled[column][row] for row in range(height) for column in range(len(filled))]
        headings = [f"AR step {column + 1}" for column in range(len(filled))]
        grid = sheet(across, len(filled), self._row_labels(height), headings)
        result = to_tiles(images[-1:], 2 * scale, "smooth")[0]
        whole = below([_legend(grid.width + result.width + 70, title), _with_result(grid, result)], gap=10)
        return framed(whole)

    def _row_labels(self, height: int) -> list[str]:
        counts = {column[0].event.num_diffusion_steps for column in self.snapshots}
        longest = max(self.snapshots, key=len)
        assert len(longest) == height
        events = [snapshot.event for snapshot in longest]
        if len(counts) > 1:
            return [f"{e.diffusion_step / e.num_diffusion_steps:.0%} of the diffusion steps" for e in events]
        return [f"diffusion step {e.diffusion_step} of {e.num_diffusion_steps}" for e in events]


def _mark(tile: Image.Image, snapshot: _Snapshot, grid_height: int, grid_width: int) -> Image.Image:
    """Cover the tokens that are not started, outline those in progress."""
    in_progress = snapshot.in_progress.view(grid_height, grid_width)
    not_started = ~(snapshot.finished | snapshot.in_progress).view(grid_height, grid_width)
    cover(tile, not_started, BLANK)
    outline(tile, in_progress, ACCENT)
    return tile


def _legend(width: int, title: str | None) -> Image.Image:
    face, swatch, spacing = Face(14), 18, 26
    entries = (
        ("finished: clean context for what follows", _FINISHED_SWATCH, _FINISHED_SWATCH),
        ("in progress: being denoised", (150, 150, 150), ACCENT),
        ("not started", BLANK, BLANK),
    )
    widths = [swatch + 8 + round(face.getlength(text)) + spacing for text, _, _ in entries]
    canvas = Image.new("RGB", (max(width, sum(widths)), 58 if title else 28), PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        Face(18).draw(draw, (4, 2), title, INK, "la")
    x, y = 4, canvas.height - 24
    for (text, fill, border), entry_width in zip(entries, widths, strict=True):
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), fill=fill, outline=border, width=3)
        face.draw(draw, (x + swatch + 8, y + 1), text, INK, "la")
        x += entry_width
    return canvas


def _with_result(grid: Image.Image, result: Image.Image) -> Image.Image:
    """The grid, an arrow from its last cell, and the finished image."""
    gap = max(2, min(result.size) // 16)
    canvas = Image.new("RGB", (grid.width + 60 + result.width + 10, grid.height), PAPER)
    canvas.paste(grid, (0, 0))
    draw = ImageDraw.Draw(canvas)
    x, y = grid.width + 52, grid.height - gap - result.height
    middle = y + result.height // 2
    draw.line((grid.width + 8, middle, grid.width + 36, middle), fill=INK, width=3)
    draw.polygon(
        [(grid.width + 34, middle - 7), (grid.width + 34, middle + 7), (grid.width + 46, middle)], INK
    )
    canvas.paste(result, (x, y))
    Face(14).draw(draw, (x + result.width // 2, y - 8), "finished", INK, "ms")
    return canvas
