"""The command `evaluate`: generate or read samples, extract features, compute figures, write a card."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalfusion import __version__
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import FILE_NAME, Card
from causalfusion.evaluate.features.extract import ExtractedFeatures, ExtractionSettings, extract_features
from causalfusion.evaluate.features.open import Extractor, open_extractor
from causalfusion.evaluate.figures import AvailableInputs, ChosenMeasures, choose_measures, compute_figures
from causalfusion.evaluate.measures.figure import Figure, features_word
from causalfusion.evaluate.origin import SampleOrigin, open_sample_origin, sample_facts
from causalfusion.evaluate.presets import changes
from causalfusion.evaluate.references.reference import ReferenceFeatures, open_reference
from causalfusion.evaluate.request import EvaluateRequest
from causalfusion.evaluate.samples.images import ImageSet
from causalfusion.files import LOCK_FILE, in_use, write_whole
from causalfusion.generate.read import to_float
from causalfusion.machine.processes import World, join_world
from causalfusion.pictures.compose import framed, to_image_grid

GRID_FILE = "grid.png"
GRID_IMAGES = 64
"""Number of samples in the picture beside the card."""


def evaluate(request: EvaluateRequest) -> Card | None:
    """Evaluate, and write the result card to the folder `out`. Returns the card on the main process, and None
    on the others of a `torchrun`. Raises UserError; a new folder `out` that holds nothing is removed then."""
    is_new = not request.out.exists()
    try:
        with join_world(request.device) as world:
            return _evaluate(request, world)
    except UserError:
        if is_new:
            with suppress(OSError):  # a folder that is not empty stays
                (request.out / LOCK_FILE).unlink(missing_ok=True)
                request.out.rmdir()
        raise


def _evaluate(request: EvaluateRequest, world: World) -> Card | None:
    with in_use(request.out, "the evaluation") if world.is_main else nullcontext():
        start = time.monotonic()
        extractors = open_extractors(request.extractors, world.device)
        origin = open_sample_origin(request, world)
        request.out.mkdir(parents=True, exist_ok=True)
        settings = ExtractionSettings(
            batch_size=request.batch_size,
            num_workers=request.num_workers,
            world=world,
            exchange=request.out,
            show_progress=request.show_progress,
        )
        references = [_open_reference(request, extractor, origin, settings) for extractor in extractors]
        chosen = []
        if world.is_main:
            both = zip(extractors, references, strict=True)
            chosen = [
                _choose_measures(request, extractor, origin, reference) for extractor, reference in both
            ]
            _refuse_impossible(request, chosen)
        referenced = time.monotonic()
        images = origin.images(request, world)
        sampled = time.monotonic()
        collected = [extract_features(images, extractor, settings) for extractor in extractors]
        if not world.is_main:
            return None
        measured = [samples for samples in collected if samples is not None]
        featured = time.monotonic()
        figures: dict[str, Figure] = {}
        left_out: dict[str, str] = {}
        for extractor, reference, choice, samples in zip(
            extractors, references, chosen, measured, strict=True
        ):
            figures |= compute_figures(samples, extractor, reference, choice.possible)
            left_out |= {f"{name} ({extractor.name})": reason for name, reason in choice.impossible.items()}
        seconds = {
            "references": referenced - start,
            "samples": sampled - referenced,
            "features": featured - sampled,
            "figures": time.monotonic() - featured,
        }
        card = Card(
            figures=figures,
            samples=sample_facts(origin, images, measured[0]),
            references=[reference.facts() for reference in references if reference is not None],
            features=[{"name": e.name, "fingerprint": e.fingerprint} for e in extractors],
            preset=_preset_facts(request),
            left_out=left_out,
            warnings=_warnings(figures, images, measured[0]),
            run=run_facts(world, seconds),
        )
        card.save(request.out / FILE_NAME)
        _draw_grid(images, request.out / GRID_FILE)
        return card


def open_extractors(asked: Sequence[str], device: torch.device) -> list[Extractor]:
    """The extractors of these names. Raises UserError where their figures would have the same names."""
    extractors = [open_extractor(name, str(device)) for name in asked]
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


def _open_reference(
    request: EvaluateRequest, extractor: Extractor, origin: SampleOrigin, settings: ExtractionSettings
) -> ReferenceFeatures | None:
    if request.reference is None:
        return None
    return open_reference(
        request.reference,
        extractor,
        origin.shape,
        settings,
        count=request.reference_images,
        cache=request.cache,
    )


def _choose_measures(
    request: EvaluateRequest, extractor: Extractor, origin: SampleOrigin, reference: ReferenceFeatures | None
) -> ChosenMeasures:
    """Choose the measures before there are samples: impossible ones are refused before hours of work."""
    probe = extractor(np.zeros((1, *origin.shape), np.uint8))
    available = AvailableInputs(
        features=extractor.name,
        count=origin.count,
        has_spatial=probe.spatial is not None,
        num_logits=0 if probe.logits is None else probe.logits.shape[1],
        has_labels=origin.has_labels,
        num_classes=origin.num_classes,
        reference=reference,
    )
    return choose_measures(request.measures, available)


def _refuse_impossible(request: EvaluateRequest, chosen: Sequence[ChosenMeasures]) -> None:
    """Raises UserError if a measure that was asked for is possible in no features, or none is possible."""
    for name in request.measures or ():
        if not any(name in choice.possible for choice in chosen):
            raise UserError(
                f"{name} cannot be measured: {chosen[0].impossible[name]}; leave it out of --measures"
            )
    if not any(choice.possible for choice in chosen):
        why = chosen[0].impossible
        raise UserError(
            f"there is nothing to measure: {why['frechet']}, and {why['class_accuracy']}; expected a "
            "--reference, or --features that know the classes, and more than a few samples"
        )


def _preset_facts(request: EvaluateRequest) -> dict[str, Any] | None:
    """Name and changed settings of the preset, for the card; None without a preset."""
    if request.preset is None:
        return None
    used = {**vars(request), **vars(request.settings)}
    used = {name: list(v) if isinstance(v, tuple) else v for name, v in used.items()}
    return {"name": request.preset, "changed": changes(request.preset, used)}


def _warnings(figures: dict[str, Figure], images: ImageSet, samples: ExtractedFeatures) -> list[str]:
    """Reasons to distrust the figures, one line each."""
    lines = [f"{name}: {figure.warning}" for name, figure in figures.items() if figure.warning]
    repeated = samples.num_repeated()
    if repeated:
        lines.append(f"{repeated} of the {len(samples.pool)} samples are equal to an earlier one")
    classes = len(images.class_names)
    if samples.labels is not None and classes:
        counts = np.bincount(samples.labels, minlength=classes)
        if counts.max() - counts.min() > 1:  # closer than one, few numbers of samples can be
            lines.append(f"the classes are not balanced: {counts.min()} to {counts.max()} samples of each")
    return lines


def run_facts(world: World, seconds: dict[str, float]) -> dict[str, Any]:
    """Time, machine, versions and command line, for the card."""
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
    """Draw the first samples, 8 in a row."""
    first: list[np.ndarray] = []
    for batch in images.batches(GRID_IMAGES):
        first.append(batch.pixels)
        if sum(map(len, first)) >= GRID_IMAGES:
            break
    pixels = np.concatenate(first)[:GRID_IMAGES]
    picture = to_image_grid(to_float(pixels), 8, scale=max(1, 96 // pixels.shape[2]), interpolation="nearest")
    write_whole(path, lambda stream: framed(picture, 8).save(stream, "PNG"))
