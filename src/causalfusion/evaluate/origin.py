"""Origin of an evaluation's samples: a model that generates them, or images that are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalfusion.config.sizes import parse_size
from causalfusion.evaluate.features.extract import ExtractedFeatures
from causalfusion.evaluate.request import DEFAULT_IMAGES, DEFAULT_MODEL, EvaluateRequest
from causalfusion.evaluate.samples.images import ImageSet, Shape
from causalfusion.evaluate.samples.make import SampleTask, label_rule, make_samples
from causalfusion.evaluate.samples.open_images import open_images, sampled_settings
from causalfusion.evaluate.samples.sample_set import SampleSet
from causalfusion.generate.output import compile_for, load_pipeline
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.run import read_prompts
from causalfusion.machine.processes import World

SAMPLES_FOLDER = "samples"
"""Folder of the generated samples, within that of the evaluation."""
_NAMES_ON_CARD = {
    "model": "model",
    "images_seen": "images_seen",
    "weights": "weights",
    "precision": "precision",
    "seed": "seed",
    "candidates": "candidates",
    "settings": "sample",
    "adapters": "adapters",
    "quantize": "quantize",
}
"""Names on a card of the settings that the command `sample` writes, by their names there."""


@dataclass(frozen=True)
class SampleOrigin:
    """Either a model that generates the samples, or the samples themselves."""

    name: str
    count: int
    """Number of samples, N."""
    shape: Shape
    class_names: list[str]
    has_labels: bool
    num_classes: int = 0
    """Number of classes of the labels; 0: unknown."""
    model: tuple[Pipeline, Path, SampleTask] | None = None
    """The model, its folder, and the samples it generates; None where samples are read."""
    read: ImageSet | None = None
    """The samples; None where a model generates them."""

    def images(self, request: EvaluateRequest, world: World) -> ImageSet:
        """The samples. Those that a model has not generated yet are generated now."""
        if self.model is None:
            assert self.read is not None, "it is one or the other"
            return self.read
        pipeline, folder, task = self.model
        return make_samples(
            pipeline,
            folder,
            request.weights,
            task,
            request.out / SAMPLES_FOLDER,
            world,
            batch_size=request.batch_size,
            show_progress=request.show_progress,
        )


def open_sample_origin(request: EvaluateRequest, world: World) -> SampleOrigin:
    """Open the samples or load the model that a request names; nothing is generated yet."""
    if request.samples is not None:
        images = open_images(
            request.samples,
            image_size=request.image_size,
            count=request.images,
            num_workers=request.num_workers,
        )
        labelled = next(images.batches(1)).labels is not None
        names = images.class_names
        return SampleOrigin(
            request.samples, len(images), images.shape, names, labelled, len(names), read=images
        )
    model = request.model or DEFAULT_MODEL
    pipeline, folder = load_pipeline(model, request, world, request.rope_extrapolation)
    if request.size:
        pipeline = pipeline.at(*parse_size(request.size, "--size"))
    task = SampleTask(
        images=request.images or DEFAULT_IMAGES,
        settings=request.settings,
        classes=read_prompts(request.classes_file) if request.classes_file else request.classes,
        prompts=read_prompts(request.prompts_file) if request.prompts_file else None,
        candidates=request.candidates,
        seed=request.seed,
        rope_extrapolation=request.rope_extrapolation,
    )
    compile_for(pipeline, task.images)
    shape = *pipeline.image_size, pipeline.codec.config.image_channels
    labelled = label_rule(pipeline, task) != "none"
    names, classes = pipeline.spec.class_names if labelled else [], pipeline.model.config.num_classes
    made_by = pipeline, folder, task
    return SampleOrigin(str(model), task.images, shape, names, labelled, classes, model=made_by)


def sample_facts(origin: SampleOrigin, images: ImageSet, samples: ExtractedFeatures) -> dict[str, Any]:
    """Facts about the samples, for a card."""
    facts: dict[str, Any] = {
        "name": origin.name,
        "count": len(samples.pool),
        "image_shape": list(images.shape),
        "hash": samples.hash(),
        "repeated": samples.num_repeated(),
    }
    if isinstance(images, SampleSet):
        told = {key: images.settings[key] for key in ("model", "images_seen") if key in images.settings}
        return {**facts, **told, **images.identity, "seconds": round(images.seconds(), 3)}
    settings = sampled_settings(origin.name) or {}
    if settings.get("command") == "sample":
        facts |= {name: settings[key] for key, name in _NAMES_ON_CARD.items() if key in settings}
    return {**facts, "fingerprint": images.fingerprint()}
