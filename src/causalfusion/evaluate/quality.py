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
from causalfusion.evaluate.features import Extractor, open_extractor
from causalfusion.evaluate.frechet import frechet_distance_of
from causalfusion.evaluate.gaussian import GaussianStatistics
from causalfusion.evaluate.images import SourceImages
from causalfusion.generate.output import uses_classes
from causalfusion.generate.pipeline import Pipeline
from causalfusion.runtime import select_device

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
    found = [GaussianStatistics.of(extractor(batch.pixels).pool) for batch in images.batches(BATCH)]
    return Judge(extractor, merged(found))


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
    with_classes = prompts is None and uses_classes(pipeline)
    found, right, seconds, knows_classes = [], 0, 0.0, False
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        labels = [i % pipeline.model.config.num_classes for i in indices] if with_classes else None
        texts = None if prompts is None else [prompts[i % len(prompts)] for i in indices]
        if labels is None and texts is None:
            labels = [pipeline.model.config.null_label] * len(indices)
        begin = time.perf_counter()
        images = pipeline.generate(labels, settings, prompts=texts, seed=seed, image_indices=indices)
        pixels = pipeline.codec.to_uint8(images)
        seconds += time.perf_counter() - begin
        features = judge.extractor(pixels)
        found.append(GaussianStatistics.of(features.pool))
        if with_classes and features.logits is not None:
            right += int((features.logits.argmax(1) == np.array(labels)).sum())
        knows_classes = features.logits is not None
    distance = frechet_distance_of(merged(found), judge.reference)
    return Quality(distance, right / count if with_classes and knows_classes else None, seconds / count)


def merged(statistics: Sequence[GaussianStatistics]) -> GaussianStatistics:
    whole = statistics[0]
    for part in statistics[1:]:
        whole = whole.merged(part)
    return whole
