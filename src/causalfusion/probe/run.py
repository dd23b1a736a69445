"""`causalfusion probe`: features of each layer at each noise level, and what probes read from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from causalfusion.config.sizes import parse_size
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.intervals import class_accuracy
from causalfusion.files import in_use, write_whole
from causalfusion.generate.features import layer_number, share_of
from causalfusion.generate.levels import level_text
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.runtime import compute_dtype, select_device, tune_allocator
from causalfusion.model.layers import num_layers
from causalfusion.model.quantized import quantize_weights
from causalfusion.probe.cache import FeatureCache, Form
from causalfusion.probe.figures import Figure, KnownFigures, best_of, key_of
from causalfusion.probe.heads import Labelled, attentive, knn, linear
from causalfusion.probe.images import ProbeData, open_data
from causalfusion.probe.picture import save_picture
from causalfusion.probe.request import Kind, ProbeRequest
from causalfusion.rng import derive_seed
from causalfusion.saved.folder import read_latest
from causalfusion.weight_files import hash_weights


@dataclass(frozen=True)
class _Task:
    """One figure to measure."""

    kind: Kind
    layer: int
    level: float | None
    option: int

    @property
    def key(self) -> str:
        return key_of(self.kind, self.layer, level_text(self.level), self.option)

    @property
    def form(self) -> Form:
        return "tokens" if self.kind == "attentive" else "pooled"


def probe(request: ProbeRequest) -> list[Figure]:
    """All figures that are asked for. Writes `probe.json`, `probe.md`, `probe.png` and `features/` in the
    request's folder; what is there is not measured again. Raises UserError."""
    tune_allocator()
    device = select_device(request.device)

    def load(folder: Path) -> Pipeline:
        return Pipeline.load(
            folder,
            weights=request.weights,
            device=device,
            autocast_dtype=compute_dtype(request.precision),
            autoencoder=request.autoencoder,
            adapters=request.weighted_adapters(),
        )

    pipeline, _ = read_latest(request.model, load)
    if request.size:
        pipeline = pipeline.at(*parse_size(request.size, "--size"))
    tasks = _tasks(request, pipeline)
    data = open_data(request, pipeline.image_size, pipeline.codec.config.image_channels)
    facts = _facts(request, pipeline, data)
    if request.quantize == "int8":  # after the weights' hash, which is of those in the folder
        quantize_weights(pipeline.model)
    with in_use(request.out, "the probe"):
        known = KnownFigures.open(request.out, facts)
        for level in request.noise_levels:
            missing = [task for task in tasks if task.level == level and task.key not in known.found]
            if missing:
                _measure(missing, level, request, pipeline, data, known)
        figures = [known.found[task.key] for task in tasks]
        _write(request, figures, len(data.train))
    return figures


def _tasks(request: ProbeRequest, pipeline: Pipeline) -> list[_Task]:
    """What is asked for. Raises UserError for layers and levels that the model does not have."""
    config, given = pipeline.model.config, request.layer_numbers
    every = range(num_layers(config) + 1)
    layers = sorted(every if given is None else {layer_number(config, layer) for layer in given})
    for level in request.noise_levels:
        if level is not None:
            share_of(pipeline, level)
    options = {"linear": 0, "attentive": request.steps, "knn": request.neighbours}
    return [
        _Task(kind, layer, level, options[kind])
        for kind in request.kind
        for level in request.noise_levels
        for layer in layers
    ]


def _facts(request: ProbeRequest, pipeline: Pipeline, data: ProbeData) -> dict[str, str | int]:
    """What all figures in a folder have in common."""
    return {
        "model": hash_weights(pipeline.model.state_dict()),
        "autoencoder": pipeline.codec.autoencoder_fingerprint,
        "weights": request.weights,
        "precision": request.precision,
        "seed": request.seed,
        "training images": data.train.fingerprint(),
        "held-out images": data.test.fingerprint(),
        **({"noise of held-out images": "their own"} if request.test else {}),
        **({"adapters": ", ".join(pipeline.adapters)} if pipeline.adapters else {}),
        **({"quantize": request.quantize} if request.quantize != "none" else {}),
    }


def _seed_of_held_out(request: ProbeRequest) -> int:
    """Those of another source are numbered as the training images are: with the same noise, that would tell
    which of them stands at the same place, and its class."""
    return derive_seed(request.seed, "probe", "test") if request.test else request.seed


def _measure(
    tasks: Sequence[_Task],
    level: float | None,
    request: ProbeRequest,
    pipeline: Pipeline,
    data: ProbeData,
    known: KnownFigures,
) -> None:
    """The figures of one level, whose features are made first."""
    train, test = (
        FeatureCache(request.out / "features", name, pipeline, images, seed, request.batch_size)
        for name, images, seed in (
            ("training", data.train, request.seed),
            ("held-out", data.test, _seed_of_held_out(request)),
        )
    )
    for cache in (train, test):
        cache.extract(level, {task.layer for task in tasks}, {task.form for task in tasks})
    labels, true = train.labels(level), test.labels(level)
    if len(np.unique(labels)) < 2:
        raise UserError("all training images have one class; expected two or more to tell apart")
    for task in tasks:
        kinds = {
            "linear": linear,
            "knn": partial(knn, neighbours=request.neighbours),
            "attentive": partial(attentive, steps=request.steps),
        }
        reading = kinds[task.kind](
            Labelled(train.features(level, task.layer, task.form), labels),
            test.features(level, task.layer, task.form),
            len(data.class_names),
            request.seed,
            pipeline.device,
        )
        found = class_accuracy(reading.predicted, true)
        figure = Figure(
            kind=task.kind,
            layer=task.layer,
            level=level_text(level),
            option=task.option,
            accuracy=found.value,
            low=found.low,
            high=found.high,
            validation=reading.validation,
            chosen=reading.chosen,
            images=len(true),
        )
        known.add(figure)
        print(f"{task.kind}, {figure.in_words()}", flush=True)


def _write(request: ProbeRequest, figures: Sequence[Figure], trained_on: int) -> None:
    """Write the tables `probe.md` and the picture `probe.png`."""
    lines = [
        f"# What probes read from {request.model}\n\n",
        f"Accuracy in % on {figures[0].images:,} held-out images, with its 95 % interval (Wilson); probes "
        f"learned from {trained_on:,}. In bold: the layer and level that are best on the probes' validation "
        "images, a fifth of those; the held-out ones took no part in the choice.\n",
    ]
    levels = list(dict.fromkeys(figure.level for figure in figures))
    for kind in request.kind:
        own, best = [f for f in figures if f.kind == kind], best_of(figures, kind)
        lines.append(f"\n## {kind}\n\n| layer | {' | '.join(levels)} |\n|---|{'---|' * len(levels)}\n")
        for layer in sorted({figure.layer for figure in own}):
            row = [next(f for f in own if (f.layer, f.level) == (layer, level)) for level in levels]
            cells = [f"{100 * f.accuracy:.1f} ({100 * f.low:.1f}–{100 * f.high:.1f})" for f in row]
            marked = [f"**{c}**" if f is best else c for f, c in zip(row, cells, strict=True)]
            lines.append(f"| {layer} | {' | '.join(marked)} |\n")
    write_whole(request.out / "probe.md", "".join(lines))
    save_picture(request.out / "probe.png", figures)
