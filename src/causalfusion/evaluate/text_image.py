"""Text→image, captioning and text-guided editing on `shapes`, judged exactly: by the oracles of `scenes`.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from causalfusion.config import SampleConfig, SplitName, WriteConfig
from causalfusion.data.drawing import Figure, Scene, draw_scene
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

FRECHET_SIDE = 8
"""The Fréchet distance is of images averaged down to 8x8 pixels: 192 numbers."""
_MIDDLE = 0.5
_EDIT_TRIALS = 200


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
    """The shares of images whose scene is what their caption says, the Fréchet distance to the real images of
    these captions, and the images (B, H, W, C) uint8. Image i is drawn from the first caption of scene i."""
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
    """(B, 192) images averaged down, grey levels 0..1."""
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
    """The shares of captions that parse and are true of their image, CIDEr-D, BLEU-4 and ROUGE-L against the
    images' own captions (which needs the extra `eval`), and the captions."""
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
    """The shares of captions that parse and are true of their image, judged by a parser alone, and the
    captions."""
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
    """The right half regenerated under the caption of another scene with the same left half: the share of
    results that are what the caption says, and of those with no pixel changed outside (not pasted back)."""
    edits = [edit_task(data, index) for index in range(count)]
    accurate, unchanged = [], []
    for batch in batches_of(count, batch_size):
        before = np.stack([edits[i][0] for i in batch])
        mask = region_mask("right", *before.shape[1:3])
        prompts, originals = [edits[i][1] for i in batch], to_float(before)

        def draw(seed: int, *, o: Tensor = originals, m: Tensor = mask, p: list[str] = prompts) -> Tensor:
            return pipeline.edit(o, m, None, sample, prompts=p, seed=seed, paste=False)

        after = best_of(draw, pipeline, prompts, candidates, seed)
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
    """A scene with a figure in each half (H, W, C), and a caption of the scene with the same left figure and
    another one on the right."""
    random = np.random.Generator(np.random.Philox(key=[index, 77]))
    left = _figure_of_half(data, random, right=False)
    old, new = (_figure_of_half(data, random, right=True, unlike=left) for _ in range(2))
    while (new.shape, new.color) == (old.shape, old.color):
        new = _figure_of_half(data, random, right=True, unlike=left)
    return draw_scene(Scene((left, old)), data.side), describe(Scene((left, new)), random)


def _figure_of_half(
    data: Shapes, random: np.random.Generator, *, right: bool, unlike: Figure | None = None
) -> Figure:
    """A figure of the data's scenes, moved into one half."""
    for _ in range(_EDIT_TRIALS):
        figure = data.scene(int(random.integers(len(data)))).figures[0]
        if unlike is not None and (figure.shape, figure.color) == (unlike.shape, unlike.color):
            continue
        lowest, highest = figure.radius + 0.02, _MIDDLE - figure.radius - 0.02
        x = random.uniform(lowest, highest) + (_MIDDLE if right else 0)
        return replace(figure, x=float(x))
    raise UserError("the data hold figures of one kind only; expected a split of `shapes`")


def by_number_of_objects(split: SplitName, side: int) -> Iterator[tuple[str, Shapes]]:
    """The split's scenes with one, two and three objects, under their names."""
    for number, name in ((1, "one object"), (2, "two objects"), (3, "three objects")):
        yield name, Shapes(split, side=side, num_objects=number)
