"""Filling a sample set: its missing images are generated batch by batch, by one process or several."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.config import RopeExtrapolation, SampleConfig
from causalfusion.config.serialize import to_dict
from causalfusion.config.sizes import size_text
from causalfusion.evaluate.samples.sample_set import SampleSet, missing_ranges, open_for_writing, write_part
from causalfusion.files import hash_of, sha256_of
from causalfusion.generate.output import (
    flops_of_product,
    quantized,
    uses_classes,
    warn_of_untrained_null,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.progress import BatchProgress
from causalfusion.generate.rank import generate_best
from causalfusion.generate.run import task_of
from causalfusion.generate.settings import check_settings
from causalfusion.machine.processes import World
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.threads import Threads
from causalfusion.saved.folder import WeightsName

LISTED = 16
"""Largest number of classes or prompts that settings list; more are given by a hash."""
_WEIGHTS: dict[WeightsName, str] = {"ema": "model.safetensors", "raw": "raw.safetensors"}


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """Order for the images of a sample set."""

    images: int
    """Number of images."""
    settings: SampleConfig
    classes: Sequence[str] = ()
    """Image i gets classes[i % len(classes)]. Empty: all classes of the model in turn."""
    prompts: Sequence[str] | None = None
    """Image i gets prompts[i % len(prompts)]. None: there are no prompts."""
    candidates: int = 1
    """Images drawn for each prompt, of which the model keeps the likeliest."""
    seed: int = 0
    rope_extrapolation: RopeExtrapolation | None = None
    """The rule that the pipeline was given; None: that of training."""


def make_samples(
    pipeline: Pipeline,
    model_folder: Path,
    weights: WeightsName,
    task: SampleTask,
    out: Path,
    world: World,
    *,
    batch_size: int = 64,
    show_progress: bool = True,
) -> SampleSet:
    """The sample set in the folder `out`; images that it lacks are generated now. Raises UserError where
    `out` holds a set with other settings, or the task does not fit the model."""
    labels = task_of(pipeline, task.classes, task.prompts, range(1)).labels  # refuses before any work is done
    check_settings(task.settings, pipeline.model.config, pipeline.spec.diffusion, pipeline.grid)
    if world.is_main:
        warn_of_untrained_null(pipeline, task.settings, labels)
        spec = pipeline.spec
        facts = {
            "image_shape": [*pipeline.image_size, pipeline.codec.config.image_channels],
            "class_names": spec.class_names if _has_labels(pipeline, task) else [],
            "model": str(model_folder.resolve()),
            "images_seen": spec.images_seen,
        }
        open_for_writing(out, identity_of(pipeline, model_folder, weights, task), facts, task.images)
    world.barrier()
    gaps = missing_ranges(out, task.images)
    world.barrier()  # nobody writes before all have looked
    batches = [
        range(start, min(start + batch_size, gap.stop))
        for gap in gaps
        for start in range(gap.start, gap.stop, batch_size)
    ]
    progress = ProgressLine(
        task.images, task.images - sum(map(len, batches)), enabled=show_progress and world.is_main
    )
    _fill(pipeline, task, out, batches, world, progress)
    world.barrier()
    return SampleSet(out, task.images)


def _fill(
    pipeline: Pipeline,
    task: SampleTask,
    out: Path,
    batches: list[range],
    world: World,
    progress: ProgressLine,
) -> None:
    """Generate this process's share of the batches."""
    if not batches:
        return
    before, made, begin, threads = progress.first, 0, time.monotonic(), Threads()
    for batch in batches[world.rank :: world.size]:
        start = time.monotonic()
        watch = BatchProgress(progress, before + made * world.size, len(batch) * world.size, task.candidates)
        threads.adapt(flops_of_product(pipeline, task.settings, len(batch)))
        entries = task_of(pipeline, task.classes, task.prompts, batch)
        images = generate_best(
            pipeline,
            entries.labels,
            entries.prompts,
            task.settings,
            task.candidates,
            seed=task.seed,
            image_indices=batch,
            watch=watch,
        )
        labels = np.array(entries.labels) if _has_labels(pipeline, task) else None
        seconds = time.monotonic() - start
        write_part(out, batch, pipeline.codec.to_uint8(images), labels, seconds)
        made += len(batch)
    rate = made * world.size / max(time.monotonic() - begin, 1e-9)
    progress.show(task.images, f"{rate:.2f}/s, generated", force=True)
    progress.close()


def _has_labels(pipeline: Pipeline, task: SampleTask) -> bool:
    """True if every image has a class."""
    return uses_classes(pipeline) and (bool(task.classes) or task.prompts is None)


def identity_of(
    pipeline: Pipeline, model_folder: Path, weights: WeightsName, task: SampleTask
) -> dict[str, Any]:
    """Everything that image i depends on, besides i."""
    spec = pipeline.spec
    codec = replace(spec.codec, autoencoder="")  # its location does not matter
    tokenizer = model_folder / TOKENIZER_FILE
    parts = [to_dict(c) for c in (spec.model, codec, spec.diffusion)] + [spec.text.image_context]
    if tokenizer.is_file():
        parts.append(spec.tokenizer_fingerprint)
    if pipeline.codec.autoencoder is not None:
        parts.append(pipeline.codec.autoencoder_fingerprint)
    return {
        "checkpoint_sha256": sha256_of(model_folder / _WEIGHTS[weights]),
        "config_hash": hash_of([json.dumps(parts, sort_keys=True)]),
        "weights": weights,
        "precision": str(pipeline.autocast_dtype).removeprefix("torch."),
        "seed": task.seed,
        "labels": label_rule(pipeline, task),
        "prompts": "none" if task.prompts is None else _listed_or_hashed(task.prompts, "prompts"),
        "candidates": task.candidates,
        "sample": to_dict(pipeline.process.settled(task.settings)),
        **quantized(pipeline),
        **_other_size(pipeline, task),
        **({"adapters": list(pipeline.adapters)} if pipeline.adapters else {}),
    }


def _other_size(pipeline: Pipeline, task: SampleTask) -> dict[str, str]:
    """The size of the images, and the rule of their positions, where they are not the model's own."""
    own, facts = (pipeline.spec.codec.image_height, pipeline.spec.codec.image_width), {}
    if pipeline.image_size != own:
        facts["size"] = size_text(*pipeline.image_size)
    if task.rope_extrapolation is not None:
        facts["rope_extrapolation"] = task.rope_extrapolation
    return facts


def label_rule(pipeline: Pipeline, task: SampleTask) -> str:
    """The class of image i, in words; "none" if it has none."""
    if not _has_labels(pipeline, task):
        return "none"
    if task.classes:
        return "given: " + _listed_or_hashed(task.classes, "classes")
    return f"balanced: image i has class i mod {pipeline.model.config.num_classes}"


def _listed_or_hashed(values: Sequence[str], what: str) -> str:
    """A few values in full, many as their number and hash."""
    if len(values) <= LISTED:
        return ", ".join(values)
    return f"{len(values)} {what}, hash {hash_of(values)}"
