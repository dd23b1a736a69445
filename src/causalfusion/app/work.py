"""The page's jobs: drawing, changing a part, describing. Each is an iterator of what to show meanwhile.

Shape letters: B images, L image tokens, P token dimension, H, W, C pixels and channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from causalfusion.app.asked import MOST_IMAGES, Asked
from causalfusion.app.frames import MOST_FRAMES, MOST_WITH_AUTOENCODER, Frame, FrameRecorder
from causalfusion.app.live import reports_of
from causalfusion.app.opened import Opened
from causalfusion.errors import UserError, check
from causalfusion.generate.layout import tokens_of_mask
from causalfusion.generate.output import flops_of_product, one_line
from causalfusion.generate.read import to_float
from causalfusion.machine.threads import Threads


def draw(opened: Opened, asked: Asked) -> Iterator[Frame]:
    """Frames of the images that are asked for; the last has the images, exactly as `sample` makes them.
    Raises UserError before the first."""
    opened.check(asked)
    pipeline, settings = opened.pipeline, opened.settings(asked)

    def work(tell: Callable[[Frame], None]) -> Tensor:
        Threads().adapt(flops_of_product(pipeline, settings, asked.images))
        return pipeline.generate(
            opened.labels(asked, asked.images),
            settings,
            prompts=opened.prompts(asked, asked.images),
            seed=asked.seed,
            watch=_recorder(opened, tell),
        )

    yield from _frames(opened, work, "picture", asked.images)


def change(
    opened: Opened, picture: np.ndarray, mask: Tensor, asked: Asked, strength: float = 1.0
) -> Iterator[Frame]:
    """Frames of variants, as many as images are asked for, of a picture (H, W, C) uint8, which changes only
    where the mask (H, W) is True, by so much of the way to noise; the last has the variants. Raises UserError
    before the first."""
    opened.check(asked)
    check(0 < strength <= 1, "how much may change", strength, "a number above 0, up to 1")
    pipeline, original = opened.pipeline, to_float(picture[None])
    tokens_changed = tokens_of_mask(mask, *pipeline.grid).flatten()
    check(bool(tokens_changed.any()), "the mask", "empty", "at least one pixel that may change")
    settings = opened.settings_for(asked, int(tokens_changed.sum()))
    labels = opened.labels(asked, 1)

    def work(tell: Callable[[Frame], None]) -> np.ndarray:
        Threads().adapt(flops_of_product(pipeline, settings, asked.images))
        known = pipeline.codec.encode_tokens(original.to(pipeline.device), None).cpu()
        edited = pipeline.edit(
            original,
            mask,
            labels,
            settings,
            prompts=opened.prompts(asked, 1),
            seed=asked.seed,
            variants=asked.images,
            strength=strength,
            watch=_recorder(opened, tell, known.repeat(asked.images, 1, 1), tokens_changed),
        )
        # Exactly the input's pixels, whatever rounding the way through floats had.
        return np.where(mask.numpy()[None, :, :, None], pipeline.codec.to_uint8(edited), picture[None])

    yield from _frames(opened, work, "variant", asked.images)


def describe(opened: Opened, picture: np.ndarray) -> Iterator[str]:
    """The model's caption of a picture (H, W, C) uint8, as far as it is written. Raises UserError."""
    pipeline = opened.pipeline
    stream = pipeline.describing().decode_stream()

    def work(tell: Callable[[str], None]) -> list[str]:
        Threads().adapt()
        return pipeline.caption(to_float(picture[None]), watch=lambda _, token: tell(stream.feed(token)))

    text = ""
    reports = reports_of(work)
    while True:
        try:
            text += next(reports)
        except StopIteration as end:
            yield one_line(end.value[0]) or "(the model says nothing)"
            return
        yield one_line(text)


def _recorder(
    opened: Opened,
    tell: Callable[[Frame], None],
    known: Tensor | None = None,
    changed: Tensor | None = None,
) -> FrameRecorder:
    codec, device = opened.pipeline.codec, opened.pipeline.device

    def decode(tokens: Tensor) -> np.ndarray:
        with torch.no_grad():
            return codec.to_uint8(codec.decode_tokens(tokens.to(device)))

    most = MOST_FRAMES if codec.autoencoder is None else MOST_WITH_AUTOENCODER
    return FrameRecorder(decode, opened.pipeline.grid, tell, known=known, changed=changed, most=most)


def _frames(
    opened: Opened,
    work: Callable[[Callable[[Frame], None]], Tensor | np.ndarray],
    what: str,
    count: int,
) -> Iterator[Frame]:
    """The frames of a piece of work, and one of its result."""
    if count > MOST_IMAGES:
        raise UserError(f"{count} {what}s are asked for; expected at most {MOST_IMAGES}")
    begin = time.perf_counter()
    result = yield from reports_of(work)
    pixels = result if isinstance(result, np.ndarray) else opened.pipeline.codec.to_uint8(result)
    seconds = time.perf_counter() - begin
    yield Frame(pixels, f"{count} {what}{'s' * (count > 1)} in {seconds:.1f} s")
