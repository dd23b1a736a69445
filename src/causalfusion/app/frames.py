"""Images on their way: what is finished, in progress, or not begun, at some steps of a generation.

Shape letters: B images, L image tokens, P token dimension, H, W, C pixels and channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from causalfusion.generate.tokens import StepEvent

MOST_FRAMES = 48
MOST_IN_AR_STEP = 24
MOST_WITH_AUTOENCODER = 8
"""A frame of latents takes as long to decode as the images themselves."""


@dataclass(frozen=True)
class Frame:
    """Images at one moment."""

    pixels: np.ndarray
    """(B, H, W, C) uint8."""
    words: str
    """The moment, such as "part 2 of 4, step 3 of 12"."""
    in_progress: np.ndarray | None = None
    """(B, rows, columns) bool: tokens of the current AR step; None: there are none."""
    not_begun: np.ndarray | None = None
    """(B, rows, columns) bool; None: there are none."""


class FrameRecorder:
    """A `watch` callback of `Pipeline.generate` and `Pipeline.edit` that hands a frame on at some steps."""

    def __init__(
        self,
        decode: Callable[[Tensor], np.ndarray],
        grid: tuple[int, int],
        hand_on: Callable[[Frame], None],
        *,
        known: Tensor | None = None,
        changed: Tensor | None = None,
        most: int = MOST_FRAMES,
    ) -> None:
        """`decode` turns tokens (B, L, P), in raster order, into pixels (B, H, W, C). Where a part of images
        is made anew: their tokens `known`, and `changed` (L,) bool, True in that part."""
        self._decode, self._grid, self._hand_on, self._most = decode, grid, hand_on, most
        self._tokens, self._changed = known, changed
        self._finished: Tensor | None = None

    def __call__(self, event: StepEvent) -> None:
        positions = event.positions.cpu()
        tokens = event.tokens.float().cpu()
        if self._tokens is None:
            rows, columns = self._grid
            self._tokens = torch.zeros(len(tokens), rows * columns, tokens.shape[-1])
        if self._finished is None:
            unchanged = torch.zeros(self._tokens.shape[1], dtype=torch.bool)
            if self._changed is not None:
                unchanged = ~self._changed
            self._finished = unchanged.repeat(len(tokens), 1)
        canvas = self._tokens.scatter(1, positions[:, :, None].expand_as(tokens), tokens)
        in_progress = torch.zeros_like(self._finished).scatter_(1, positions, True)
        if is_kept(event, self._most):
            self._hand_on(self._frame(canvas, in_progress, event))
        if event.diffusion_step == event.num_diffusion_steps:
            self._tokens, self._finished = canvas, self._finished | in_progress

    def _frame(self, canvas: Tensor, in_progress: Tensor, event: StepEvent) -> Frame:
        assert self._finished is not None, "set with the first event"
        shape = (len(canvas), *self._grid)
        not_begun = ~(self._finished | in_progress)
        return Frame(
            self._decode(canvas),
            moment(event),
            in_progress.view(shape).numpy(),
            not_begun.view(shape).numpy(),
        )


def moment(event: StepEvent) -> str:
    """A step in the page's words."""
    step = f"step {event.diffusion_step} of {event.num_diffusion_steps}"
    return step if event.num_ar_steps == 1 else f"part {event.ar_step} of {event.num_ar_steps}, {step}"


def is_kept(event: StepEvent, most: int = MOST_FRAMES) -> bool:
    """True for at most `most` steps of a generation: the last of every AR step, or of as many as can be; and
    between them others, evenly spaced, where there is room."""
    if event.ar_step not in _spread(event.num_ar_steps, most):
        return False
    in_each = min(MOST_IN_AR_STEP, max(1, most // event.num_ar_steps))
    return event.diffusion_step in _spread(event.num_diffusion_steps, in_each)


def _spread(count: int, most: int) -> set[int]:
    """At most `most` of 1..count, evenly spaced, the last among them."""
    most = min(most, count)
    return {round((k + 1) * count / most) for k in range(most)}
