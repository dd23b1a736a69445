"""`causalfusion plan`: time every setting, measure what can be afforded, name the best in the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.config.serialize import from_dict, read_object, to_dict
from causalfusion.config.sizes import parse_size
from causalfusion.data import open_source
from causalfusion.errors import UserError
from causalfusion.evaluate.quality import Judge, generate_batch, measure_quality, open_judge
from causalfusion.evaluate.samples.open_images import data_config
from causalfusion.files import hash_of, in_use, sha256_of, write_whole
from causalfusion.generate.output import check_prompts, uses_classes
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import check_settings
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.runtime import compute_dtype, select_device, tune_allocator
from causalfusion.planner.picture import save_picture
from causalfusion.planner.request import PlanRequest
from causalfusion.planner.sweep import Tried, choose, frontier, in_time
from causalfusion.saved.folder import read_latest
from causalfusion.saved.sampling import read_sampling

BEYOND = 2.0
"""Settings that take up to so many times the budget are measured too: the frontier goes on beyond it."""
PROMPTS = 1000
"""Largest number of captions of the reference that serve as prompts."""


def plan(request: PlanRequest) -> Tried:
    """The best setting within the budget. Writes `plan.json`, `plan.md` and `plan.png`; figures that are in
    plan.json are not measured again."""
    device = select_device(request.device)

    def load(folder: Path) -> Pipeline:
        dtype = compute_dtype(request.precision)
        return Pipeline.load(folder, device=device, autocast_dtype=dtype, autoencoder=request.autoencoder)

    tune_allocator()
    candidates = [_candidate(request, *read_latest(request.model, load))]
    pipeline = candidates[0].pipeline
    for name in request.also:
        candidates.append(_candidate(request, *read_latest(name, load), str(name)))
        if candidates[-1].pipeline.image_size != pipeline.image_size:
            raise UserError(f"--also {name} makes images of another size than {request.model}")
    data = data_config(request.reference, pipeline.image_size if request.size else 0)
    prompts = [prompts_for(each.pipeline, data) for each in candidates]
    judge = open_judge(request.features, data, pipeline.image_size, request.device)
    fingerprint = open_source(data).fingerprint()
    tried: list[Tried] = []
    with in_use(request.out, "the plan"):
        known = _EarlierTrials.open(request, candidates[0].folder, str(device), fingerprint)
        for each, texts in zip(candidates, prompts, strict=True):
            timed = _timed(each, texts, request, known)
            tried += _judged(each, timed, judge, texts, request, known)
        best = choose(tried, request.budget_seconds)
        _write(request, tried)
    return best


@dataclass(frozen=True)
class _Candidate:
    """A model with the settings to try with it."""

    pipeline: Pipeline
    folder: Path
    settings: list[SampleConfig]
    name: str = ""
    """A further model, as it was given; empty: the one that is planned for."""

    def key(self, settings: SampleConfig) -> str:
        """The name of one of its settings in `plan.json`; that of a further model has its weights in it."""
        own = [sha256_of(self.folder / "model.safetensors")] if self.name else []
        return hash_of([to_dict(settings), *own])


def _candidate(request: PlanRequest, pipeline: Pipeline, folder: Path, name: str = "") -> _Candidate:
    """Raises UserError for settings that the model does not have."""
    if request.size:
        pipeline = pipeline.at(*parse_size(request.size, "--size"))
    model, num_tokens = pipeline.model.config, pipeline.codec.num_tokens
    if name:
        own = read_sampling(folder) or pipeline.default_sampling
        settings = request.sweep.settings_of_other(own, num_tokens)
    else:
        settings = request.sweep.settings(request.sample, model, num_tokens)
    if not settings:
        raise UserError("no setting is left to try; expected --diffusion-steps of at least --ar-steps")
    for setting in settings:
        check_settings(setting, model, pipeline.spec.diffusion, pipeline.grid)
    return _Candidate(pipeline, folder, settings, name)


def prompts_for(pipeline: Pipeline, data: DataConfig) -> list[str] | None:
    """Captions of the reference as prompts for a model that generates from text; None for other models."""
    if pipeline.tokenizer is None or uses_classes(pipeline):
        return None
    source = open_source(data)
    if not source.has_captions:
        raise UserError(
            f"the model makes images of texts, and {source.name} has no captions; expected a --reference "
            "with captions, such as shapes:test"
        )
    some = range(0, len(source), max(1, len(source) // PROMPTS))
    prompts = [source.read(index).captions[0] for index in some][:PROMPTS]
    check_prompts(pipeline, prompts)
    return prompts


_LATER = ("weights", "reference_fingerprint")
"""Facts that the files of earlier versions lack."""


@dataclass(frozen=True, kw_only=True)
class _PlanFile:
    """The content of `plan.json`: facts that the figures depend on, and the settings tried, by their hash."""

    facts: dict[str, str | int]
    settings: dict[str, Tried]


class _EarlierTrials:
    """The settings in `plan.json`, timed and measured with the same model, device and options."""

    def __init__(self, path: Path, facts: dict[str, Any], found: dict[str, Tried]) -> None:
        self.path, self.facts, self.found = path, facts, found

    @classmethod
    def open(cls, request: PlanRequest, folder: Path, device: str, fingerprint: str) -> _EarlierTrials:
        """Read the request's `plan.json`; `fingerprint` is that of the reference's images. Raises UserError
        for a file that was made with another model, device or options."""
        path = request.out / "plan.json"
        facts = {
            "model": str(folder.resolve()),
            "device": device,
            "threads": torch.get_num_threads(),
            "precision": request.precision,
            "batch_size": request.batch_size,
            "images": request.images,
            "seed": request.seed,
            "features": request.features,
            "reference": request.reference,
            "weights": sha256_of(folder / "model.safetensors"),
            "reference_fingerprint": fingerprint,
            "size": request.size,
        }
        if not path.exists():
            return cls(path, facts, {})
        try:
            before = _read_plan(path)
        except UserError as error:
            raise UserError(f"{error}; delete it, or give another --out") from None
        said = {**dict.fromkeys(_LATER), "size": "", **before.facts}
        changed = [n for n, value in facts.items() if said.get(n) != value and (n not in _LATER or said[n])]
        if changed:
            raise UserError(
                f"{path} was measured with {changed[0]} {said.get(changed[0])!r}, now it is "
                f"{facts[changed[0]]!r}; give another --out"
            )
        return cls(path, facts, before.settings)

    def get(self, key: str) -> Tried | None:
        return self.found.get(key)

    def add(self, key: str, tried: Tried) -> None:
        self.found[key] = tried
        values = {"facts": self.facts, "settings": {key: to_dict(trial) for key, trial in self.found.items()}}
        write_whole(self.path, json.dumps(values, indent=1) + "\n")


def _read_plan(path: Path) -> _PlanFile:
    """Raises UserError for a file that is damaged."""
    values = read_object(path, "plan")
    settings = values.get("settings")
    for trial in settings.values() if isinstance(settings, dict) else ():
        if isinstance(trial, dict):
            trial.setdefault("model", "")  # which the files of earlier versions lack
    try:
        return from_dict(_PlanFile, values, complete=True)
    except UserError as error:
        raise UserError(f"plan: {path}: {error}") from None


def _timed(
    candidate: _Candidate,
    prompts: Sequence[str] | None,
    request: PlanRequest,
    known: _EarlierTrials,
) -> list[Tried]:
    """Each setting with the seconds that an image takes in a full batch: the shorter of two measurements, as
    the first also warms up."""
    line, found = ProgressLine(len(candidate.settings), 0, what="settings"), []
    for place, setting in enumerate(candidate.settings):
        key = candidate.key(setting)
        trial = known.get(key)
        if trial is None:
            line.show(place, "timing")
            seconds = min(
                _seconds(candidate.pipeline, setting, prompts, request.batch_size) for _ in range(2)
            )
            trial = Tried(settings=setting, seconds_per_image=seconds)
            known.add(key, trial)
        trial = replace(trial, model=candidate.name)
        found.append(trial)
    line.close()
    return found


def _seconds(
    pipeline: Pipeline, settings: SampleConfig, prompts: Sequence[str] | None, batch_size: int
) -> float:
    """The seconds of a batch for each of its images."""
    return generate_batch(pipeline, settings, range(batch_size), prompts=prompts).seconds / batch_size


def _judged(
    candidate: _Candidate,
    tried: Sequence[Tried],
    judge: Judge,
    prompts: Sequence[str] | None,
    request: PlanRequest,
    known: _EarlierTrials,
) -> list[Tried]:
    """The settings, with the quality of those that take at most BEYOND times the budget."""
    affordable = [trial for trial in tried if trial.seconds_per_image <= BEYOND * request.budget_seconds]
    line, done = ProgressLine(len(affordable), 0, what="settings"), []
    for trial in tried:
        if trial in affordable and trial.frechet is None:
            line.show(len(done), trial.in_words())
            found = measure_quality(
                candidate.pipeline,
                trial.settings,
                judge,
                request.images,
                prompts=prompts,
                seed=request.seed,
                batch_size=request.batch_size,
            )
            trial = replace(trial, frechet=found.frechet, accuracy=found.accuracy)
            known.add(candidate.key(trial.settings), trial)
        done.append(trial)
    line.close()
    return done


def _write(request: PlanRequest, tried: Sequence[Tried]) -> None:
    """Write the table `plan.md` and, where any setting was measured, the picture `plan.png`."""
    best, size = frontier(tried), f" at {request.size}" if request.size else ""
    also = "".join(f", {name}" for name in request.also)
    lines = [
        f"# Quality against time: {request.model}{also}\n\n",
        f"Fréchet distance in the features `{request.features}` of {request.images} images against "
        f"{request.reference}{size}; time for each image in batches of {request.batch_size} on "
        f"{select_device(request.device)}. "
        "In bold: the frontier, of which nothing quicker is better.\n\n",
        "| setting | time per image | Fréchet distance | read as its class |\n|---|---|---|---|\n",
    ]
    for trial in sorted(tried, key=lambda t: t.seconds_per_image):
        if trial.frechet is not None:
            mark = "**" if trial in best else ""
            share = "" if trial.accuracy is None else f"{trial.accuracy:.1%}"
            time_taken = in_time(trial.seconds_per_image)
            lines.append(
                f"| {mark}{trial.in_words()}{mark} | {time_taken} | {trial.frechet:.4g} | {share} |\n"
            )
    left_out = sum(trial.frechet is None for trial in tried)
    if left_out:
        lines.append(f"\nTimed but, being slower, not measured: {left_out}.\n")
    write_whole(request.out / "plan.md", "".join(lines))
    if best:
        save_picture(request.out / "plan.png", tried, best, request.budget_seconds)
