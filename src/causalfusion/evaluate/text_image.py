"""Text to image, captioning and text-guided editing on the data set `shapes`, judged by the oracles in
`measures.scenes`.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from causalfusion.config import SampleConfig, SplitName, WriteConfig
from causalfusion.data.drawing import Scene, SceneObject, draw_scene
from causalfusion.data.scene_captions import describe, parse_caption
from causalfusion.data.shapes import Shapes
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.captions import caption_scores
from causalfusion.evaluate.measures.frechet import frechet_distance
from causalfusion.evaluate.measures.scenes import caption_truth, matches, read_scene, scene_accuracy
from causalfusion.generate.layout import batches_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.rank import best_of, generate_best
from causalfusion.generate.read import to_float
from causalfusion.generate.regions import region_mask

Figures = dict[str, float]
Progress = Callable[[int], None]
"""Called with the number of images that are done."""

FRECHET_SIDE = 8
"""The Fréchet distance compares images averaged down to 8x8 pixels: 192 numbers."""
_MIDDLE = 0.5
_EDIT_TRIALS = 200
"""Scenes that are tried to find one with another figure."""


def measure_text_to_image(
    pipeline: Pipeline,
    data: Shapes,
    count: int,
    sample: SampleConfig,
    *,
    candidates: int = 1,
    seed: int = 0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> tuple[Figures, np.ndarray]:
    """Generate `count` images, image i from the first caption of scene i. Returns the shares of images that
    show what their caption says with the Fréchet distance to the real images of these captions, and the
    images (count, H, W, C) uint8."""
    prompts = [data.captions(index)[0] for index in range(count)]
    parts = []
    for batch in batches_of(count, batch_size):
        images = generate_best(
            pipeline, None, [prompts[i] for i in batch], sample, candidates, seed=seed, image_indices=batch
        )
        parts.append(pipeline.codec.to_uint8(images))
        if progress is not None:
            progress(batch[-1] + 1)
    pixels = np.concatenate(parts)
    scenes = [read_scene(image) for image in pixels]
    described = [parse_caption(prompt) for prompt in prompts]
    figures = scene_accuracy([d for d in described if d is not None], scenes)
    real = np.stack([data.read(index).image for index in range(count)])
    return {**figures, "frechet_pixels8": frechet_distance(_pooled(pixels), _pooled(real))}, pixels


def _pooled(pixels: np.ndarray) -> np.ndarray:
    """Images (B, H, W, 3) averaged down to 8x8 pixels, (B, 192) in 0..1."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.adaptive_avg_pool2d(images, FRECHET_SIDE).flatten(1).numpy()


def measure_captions(
    pipeline: Pipeline,
    data: Shapes,
    count: int,
    write: WriteConfig,
    *,
    seed: int = 0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> tuple[Figures, list[str]]:
    """Caption `count` images. Returns the shares of captions that can be parsed and are true of their image
    with CIDEr-D, BLEU-4 and ROUGE-L against the images' own captions (extra `eval`), and the captions."""
    truth, captions = measure_caption_truth(
        pipeline, data, count, write, seed=seed, batch_size=batch_size, progress=progress
    )
    scores = caption_scores(captions, [data.captions(index) for index in range(count)])
    return {**truth, **scores}, captions


def measure_caption_truth(
    pipeline: Pipeline,
    data: Shapes,
    count: int,
    write: WriteConfig,
    *,
    seed: int = 0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> tuple[Figures, list[str]]:
    """Caption `count` images. Returns the shares of captions that can be parsed and are true of their image,
    and the captions."""
    captions: list[str] = []
    for batch in batches_of(count, batch_size):
        images = to_float(np.stack([data.read(index).image for index in batch]))
        captions += pipeline.caption(images, write, seed=seed, image_indices=batch)
        if progress is not None:
            progress(batch[-1] + 1)
    return caption_truth(captions, [data.scene(index) for index in range(count)]), captions


def measure_edits(
    pipeline: Pipeline,
    data: Shapes,
    count: int,
    sample: SampleConfig,
    *,
    candidates: int = 1,
    seed: int = 0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Figures:
    """Regenerate the right half of `count` images from the caption of another scene with the same left half.
    Returns the share of results that show what the caption says, and the share without a changed pixel in the
    left half, which is not pasted back."""
    edits = [edit_task(data, index) for index in range(count)]
    accurate, unchanged = [], []
    for batch in batches_of(count, batch_size):
        before = np.stack([edits[i][0] for i in batch])
        mask = region_mask("right", *before.shape[1:3])
        prompts, originals = [edits[i][1] for i in batch], to_float(before)

        draw = partial(
            pipeline.edit, originals, mask, None, sample, prompts=prompts, image_indices=batch, paste=False
        )
        after = best_of(lambda seed, d=draw: d(seed=seed), pipeline, prompts, candidates, seed)
        pixels = pipeline.codec.to_uint8(after)
        outside = ~mask.numpy()
        for image, original, index in zip(pixels, before, batch, strict=True):
            description = parse_caption(edits[index][1])
            assert description is not None, "captions of scenes parse"
            accurate.append(matches(description, read_scene(image)).all)
            unchanged.append(bool((image[outside] == original[outside]).all()))
        if progress is not None:
            progress(batch[-1] + 1)
    return {"all": float(np.mean(accurate)), "outside_unchanged": float(np.mean(unchanged))}


def edit_task(data: Shapes, index: int) -> tuple[np.ndarray, str]:
    """An image (H, W, C) with a figure in each half, and the caption of a scene with the same left figure and
    another right one."""
    random = np.random.Generator(np.random.Philox(key=[index, 77]))
    left = _figure_of_half(data, random, right=False)
    old, new = (_figure_of_half(data, random, right=True, unlike=left) for _ in range(2))
    while (new.shape, new.color) == (old.shape, old.color):
        new = _figure_of_half(data, random, right=True, unlike=left)
    return draw_scene(Scene((left, old)), data.side), describe(Scene((left, new)), random)


def _figure_of_half(
    data: Shapes, random: np.random.Generator, *, right: bool, unlike: SceneObject | None = None
) -> SceneObject:
    """A figure from the data's scenes, of another kind than `unlike`, moved into one half."""
    for _ in range(_EDIT_TRIALS):
        figure = data.scene(int(random.integers(len(data)))).figures[0]
        if unlike is not None and (figure.shape, figure.color) == (unlike.shape, unlike.color):
            continue
        lowest, highest = figure.radius + 0.02, _MIDDLE - figure.radius - 0.02
        x = random.uniform(lowest, highest) + (_MIDDLE if right else 0)
        return replace(figure, x=float(x))
    raise UserError("the data hold figures of one kind only; expected a split of `shapes`")


def by_number_of_objects(split: SplitName, side: int) -> Iterator[tuple[str, Shapes]]:
    """Yields the split's scenes with one, two and three objects, each with a name."""
    for number, name in ((1, "one object"), (2, "two objects"), (3, "three objects")):
        yield name, Shapes(split, side=side, num_objects=number)
