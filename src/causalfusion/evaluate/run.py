"""`causalfusion evaluate`: samples generated or read, features, figures, a result card."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalfusion import __version__
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import FILE_NAME, Card
from causalfusion.evaluate.features.open import Extractor, open_extractor
from causalfusion.evaluate.features.reference import ReferenceFeatures, open_reference
from causalfusion.evaluate.measures.figure import Figure, MeasureName, features_word
from causalfusion.evaluate.measures.figures import Means, choose, figures_of
from causalfusion.evaluate.presets import changes
from causalfusion.evaluate.request import EvaluateRequest
from causalfusion.evaluate.samples.collect import Collected, Work, collect
from causalfusion.evaluate.samples.images import ImageSet
from causalfusion.evaluate.samples.source import Origin, open_origin, sample_facts
from causalfusion.files import LOCK_FILE, in_use
from causalfusion.generate.read import to_float
from causalfusion.machine.processes import World, join_world
from causalfusion.pictures.compose import framed, to_image_grid

IN_GRID = 64
GRID = "grid.png"


def evaluate(request: EvaluateRequest) -> Card | None:
    """The card, written to `out` as well; under `torchrun` on the main process, elsewhere None."""
    is_new = not request.out.exists()
    try:
        with join_world(request.device) as world:
            return _evaluate(request, world)
    except UserError:
        if is_new:
            with suppress(OSError):  # what is not empty, stays
                (request.out / LOCK_FILE).unlink(missing_ok=True)
                request.out.rmdir()
        raise


def _evaluate(request: EvaluateRequest, world: World) -> Card | None:
    with in_use(request.out, "the evaluation") if world.is_main else nullcontext():
        start = time.monotonic()
        extractors = _open_extractors(request.extractors, world)
        origin = open_origin(request, world)
        request.out.mkdir(parents=True, exist_ok=True)
        work = Work(
            batch_size=request.batch_size, num_workers=request.num_workers, world=world,
            exchange=request.out, show_progress=request.show_progress,
        )  # fmt: skip
        references = [_reference(request, extractor, origin, work) for extractor in extractors]
        plans = []
        if world.is_main:
            both = zip(extractors, references, strict=True)
            plans = [_plan(request, extractor, origin, reference) for extractor, reference in both]
            _refuse_nothing(request, plans)
        referenced = time.monotonic()
        images = origin.images(request, world)
        sampled = time.monotonic()
        collected = [collect(images, extractor, work) for extractor in extractors]
        if not world.is_main:
            return None
        measured = [samples for samples in collected if samples is not None]
        featured = time.monotonic()
        figures: dict[str, Figure] = {}
        left_out: dict[str, str] = {}
        for extractor, reference, plan, samples in zip(extractors, references, plans, measured, strict=True):
            figures |= figures_of(samples, extractor, reference, plan.possible)
            left_out |= {f"{name} ({extractor.name})": reason for name, reason in plan.impossible.items()}
        seconds = {
            "references": referenced - start, "samples": sampled - referenced,
            "features": featured - sampled, "figures": time.monotonic() - featured,
        }  # fmt: skip
        card = Card(
            figures=figures,
            samples=sample_facts(origin, images, measured[0]),
            references=[reference.facts() for reference in references if reference is not None],
            features=[{"name": e.name, "fingerprint": e.fingerprint} for e in extractors],
            preset=_preset(request),
            left_out=left_out,
            warnings=_warnings(figures, images, measured[0]),
            run=_run_facts(world, seconds),
        )
        card.save(request.out / FILE_NAME)
        _draw_grid(images, request.out / GRID)
        return card


def _open_extractors(asked: Sequence[str], world: World) -> list[Extractor]:
    extractors = [open_extractor(name, str(world.device)) for name in asked]
    names = [extractor.name for extractor in extractors]
    words = [features_word(name) for name in names]
    for place, word in enumerate(words):
        if word in words[:place]:
            first = names[words.index(word)]
            raise UserError(
                f"the figures of the features {first} and {names[place]} would have the same names; "
                "expected one of them: evaluate the other into another --out"
            )
    return extractors


def _reference(
    request: EvaluateRequest, extractor: Extractor, origin: Origin, work: Work
) -> ReferenceFeatures | None:
    if request.reference is None:
        return None
    return open_reference(
        request.reference, extractor, origin.shape, work, count=request.reference_images,
        cache=request.cache,
    )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    possible: list[MeasureName]
    impossible: dict[str, str]
    """And why."""


def _plan(
    request: EvaluateRequest, extractor: Extractor, origin: Origin, reference: ReferenceFeatures | None
) -> _Plan:
    """The measures, before there are samples: what cannot be is refused before hours of work."""
    probe = extractor(np.zeros((1, *origin.shape), np.uint8))
    means = Means(
        features=extractor.name,
        count=origin.count,
        spatial=probe.spatial is not None,
        num_logits=0 if probe.logits is None else probe.logits.shape[1],
        labels=origin.has_labels,
        num_classes=len(origin.class_names),
        reference=reference,
    )
    return _Plan(*choose(request.measures, means))


def _refuse_nothing(request: EvaluateRequest, plans: Sequence[_Plan]) -> None:
    """A measure that was asked for has to be possible in some features, and one of all in any."""
    for name in request.measures or ():
        if not any(name in plan.possible for plan in plans):
            raise UserError(
                f"{name} cannot be measured: {plans[0].impossible[name]}; leave it out of --measures"
            )
    if not any(plan.possible for plan in plans):
        why = plans[0].impossible
        raise UserError(
            f"there is nothing to measure: {why['frechet']}, and {why['class_accuracy']}; expected a "
            "--reference, or --features that know the classes, and more samples than a few"
        )


def _preset(request: EvaluateRequest) -> dict[str, Any] | None:
    if request.preset is None:
        return None
    used = {**vars(request), **vars(request.settings)}
    used = {name: list(v) if isinstance(v, tuple) else v for name, v in used.items()}
    return {"name": request.preset, "changed": changes(request.preset, used)}


def _warnings(figures: dict[str, Figure], images: ImageSet, samples: Collected) -> list[str]:
    lines = [f"{name}: {figure.warning}" for name, figure in figures.items() if figure.warning]
    repeated = samples.num_repeated()
    if repeated:
        lines.append(f"{repeated} of the {len(samples.pool)} samples are equal to an earlier one")
    classes = len(images.class_names)
    if samples.labels is not None and classes:
        counts = np.bincount(samples.labels, minlength=classes)
        if counts.min() != counts.max():
            lines.append(f"the classes are not balanced: {counts.min()} to {counts.max()} samples of each")
    return lines


def _run_facts(world: World, seconds: dict[str, float]) -> dict[str, Any]:
    on_gpu = world.device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(world.device) if on_gpu else f"cpu ({platform.machine()})",
        "processes": world.size,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "versions": {
            "causalfusion": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "argv": sys.argv[1:],
    }


def _draw_grid(images: ImageSet, path: Path) -> None:
    """The first samples."""
    first: list[np.ndarray] = []
    for batch in images.batches(IN_GRID):
        first.append(batch.pixels)
        if sum(map(len, first)) >= IN_GRID:
            break
    pixels = np.concatenate(first)[:IN_GRID]
    picture = to_image_grid(to_float(pixels), 8, scale=max(1, 96 // pixels.shape[2]), interpolation="nearest")
    framed(picture, 8).save(path)
