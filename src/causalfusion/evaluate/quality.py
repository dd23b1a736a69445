"""A quick judgement of what a model generates, for those who compare many settings: `study` and `plan`.

One Fréchet distance, in one feature space, against one set of real images; `evaluate` is for figures to
publish.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.data import open_source
from causalfusion.errors import UserError
from causalfusion.evaluate.features.open import Extractor, open_extractor
from causalfusion.evaluate.measures.frechet import gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.references.reference import reference_of
from causalfusion.evaluate.samples.images import SourceImages
from causalfusion.generate.output import uses_classes
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.runtime import select_device

REFERENCE_IMAGES = 10_000
"""At most so many real images are drawn."""
BATCH = 500


@dataclass(frozen=True)
class Judge:
    extractor: Extractor
    reference: GaussianStatistics


@dataclass(frozen=True)
class Quality:
    frechet: float
    accuracy: float | None
    """Share of the images that are read as their class; None: no classes, or a judge that knows none."""
    seconds_per_image: float
    """Of generation alone."""


def open_judge(features: str, data: DataConfig, image_size: int, device: str) -> Judge:
    """`features` as `evaluate --features` names them."""
    extractor = open_extractor(features, str(select_device(device)))
    source = open_source(data)
    images = SourceImages(source, image_size=image_size, count=min(len(source), REFERENCE_IMAGES))
    return Judge(extractor, reference_of(images, extractor, BATCH).statistics)


@dataclass(frozen=True)
class Generated:
    """A batch, and how long it took."""

    pixels: np.ndarray
    """(B, H, W, C) uint8."""
    labels: list[int] | None
    """Classes in turn; None where the model has none, or is told by prompts."""
    seconds: float


def generate_batch(
    pipeline: Pipeline, settings: SampleConfig, indices: Sequence[int], *,
    prompts: Sequence[str] | None = None, seed: int = 0,
) -> Generated:  # fmt: skip
    """Images of all classes in turn, or of the prompts in turn."""
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
    """Of `count` images: all classes in turn, or the prompts in turn."""
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
        judged = batch.labels is not None and features.logits is not None
        if batch.labels is not None and features.logits is not None:
            right += int((features.logits.argmax(1) == np.array(batch.labels)).sum())
    assert whole is not None, "there are images"
    distance = gaussian_frechet_distance(whole, judge.reference)
    return Quality(distance, right / count if judged else None, seconds / count)
