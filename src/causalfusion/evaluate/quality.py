"""Quick judgement of a model's images, for `study` and `plan`, which compare many settings: one Fréchet
distance in one feature space. `evaluate` is for figures to publish.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.data import open_source
from causalfusion.data.scene_captions import parse_caption
from causalfusion.errors import UserError
from causalfusion.evaluate.features.open import Extractor, open_extractor
from causalfusion.evaluate.measures.frechet import gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.measures.scenes import matches, read_scene
from causalfusion.evaluate.references.reference import reference_of
from causalfusion.evaluate.samples.images import SourceImages
from causalfusion.generate.output import uses_classes
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.runtime import select_device

REFERENCE_IMAGES = 10_000
"""Largest number of real images to compare with."""
BATCH = 500
"""Images generated, or taken to features, together."""


@dataclass(frozen=True)
class Judge:
    extractor: Extractor
    reference: GaussianStatistics
    """Statistics of the real images' features."""
    reads_scenes: bool = False
    """Images of captions are read by the oracle of the data set `shapes`."""


@dataclass(frozen=True)
class Quality:
    frechet: float
    accuracy: float | None
    """The share of images whose predicted class is their own, or that show what their caption says; None
    where nothing can tell, such as a classifier of another number of classes."""
    seconds_per_image: float
    """Duration of generation alone."""


def open_judge(
    features: str,
    data: DataConfig,
    image_size: tuple[int, int],
    device: str,
    most: int = REFERENCE_IMAGES,
) -> Judge:
    """A judge that compares with the images of `data`, at most so many, brought to a (height, width);
    `features` is a name as in `evaluate --features`."""
    extractor = open_extractor(features, str(select_device(device)))
    images = judged_by(data, image_size, most)
    statistics = reference_of(images, extractor, BATCH).statistics
    return Judge(extractor, statistics, reads_scenes=images.name == "shapes")


def judged_by(data: DataConfig, image_size: tuple[int, int], most: int = REFERENCE_IMAGES) -> SourceImages:
    """The real images of a judge: at most so many of `data`, brought to a (height, width)."""
    source = open_source(data)
    count = min(len(source), most)
    return SourceImages(source, image_size=image_size, count=count, skip_damaged=True)  # as training does


@dataclass(frozen=True)
class Generated:
    """A batch of generated images."""

    pixels: np.ndarray
    """Images, (B, H, W, C) uint8."""
    labels: list[int] | None
    """Classes of the images; None where the model has none, or follows prompts."""
    seconds: float
    """Duration of their generation."""


def generate_batch(
    pipeline: Pipeline,
    settings: SampleConfig,
    indices: Sequence[int],
    *,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
) -> Generated:
    """Generate the images of these indices: classes in turn, or prompts in turn."""
    labels = texts = None
    if prompts is not None:
        texts = [prompts[i % len(prompts)] for i in indices]
    elif uses_classes(pipeline):
        labels = [i % pipeline.model.config.num_classes for i in indices]
    told = labels or ([pipeline.model.config.null_label] * len(indices) if texts is None else None)
    begin = time.perf_counter()
    images = pipeline.generate(told, settings, prompts=texts, seed=seed, image_indices=indices)
    pixels = pipeline.codec.to_uint8(images)
    return Generated(pixels, labels, time.perf_counter() - begin)


def measure_quality(
    pipeline: Pipeline,
    settings: SampleConfig,
    judge: Judge,
    count: int,
    *,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
) -> Quality:
    """Quality of `count` generated images, classes or prompts in turn. Raises UserError below 2 images."""
    if count < 2:
        raise UserError(f"{count} images are too few for a Fréchet distance; expected at least 2")
    whole: GaussianStatistics | None = None
    right, seconds, judged = 0, 0.0, False
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        batch = generate_batch(pipeline, settings, indices, prompts=prompts, seed=seed)
        seconds += batch.seconds
        features = judge.extractor(batch.pixels)
        part = GaussianStatistics.of(features.pool)
        whole = part if whole is None else whole.merged(part)
        logits, classes = features.logits, pipeline.model.config.num_classes
        if batch.labels is not None and logits is not None and logits.shape[1] == classes:
            judged = True
            right += int((logits.argmax(1) == np.array(batch.labels)).sum())
        elif prompts is not None and judge.reads_scenes:
            judged = True
            right += _as_said([prompts[i % len(prompts)] for i in indices], batch.pixels)
    assert whole is not None, "there are images"
    distance = gaussian_frechet_distance(whole, judge.reference)
    return Quality(distance, right / count if judged else None, seconds / count)


def _as_said(prompts: Sequence[str], pixels: np.ndarray) -> int:
    """The number of images (B, H, W, 3) that show exactly what their caption of `shapes` says."""
    described = [parse_caption(prompt) for prompt in prompts]
    pairs = zip(described, pixels, strict=True)
    return sum(d is not None and matches(d, read_scene(image)).all for d, image in pairs)
