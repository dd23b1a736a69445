"""`causalfusion plan`: time every setting, measure what can be afforded, name the best in the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.config.serialize import read_record, to_dict, to_toml
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
from causalfusion.planner.refine import neighbours, refine
from causalfusion.planner.request import PlanRequest
from causalfusion.planner.sweep import Tried, choose, frontier, in_time
from causalfusion.saved.folder import SAMPLING_FILE, read_latest

BEYOND = 2.0
"""Settings that take up to so many times the budget are measured too: the frontier goes on beyond it."""
PROMPTS = 1000
"""Largest number of captions of the reference that serve as prompts."""


def plan(request: PlanRequest) -> Tried:
    """The best setting within the budget. Writes `plan.json`, `plan.md` and `plan.png`, and the model's own
    settings if so asked; figures that are in plan.json are not measured again."""
    device = select_device(request.device)

    def load(folder: Path) -> Pipeline:
        dtype = compute_dtype(request.precision)
        return Pipeline.load(folder, device=device, autocast_dtype=dtype, autoencoder=request.autoencoder)

    tune_allocator()
    pipeline, folder = read_latest(request.model, load)
    if request.size:
        pipeline = pipeline.at(*parse_size(request.size, "--size"))
    model, diffusion = pipeline.model.config, pipeline.spec.diffusion
    flow = diffusion.path != "ddpm"
    settings = request.sweep.settings(request.sample, model, pipeline.codec.num_tokens, flow=flow)
    if not settings:
        raise UserError("no setting is left to try; expected --diffusion-steps of at least --ar-steps")
    for setting in settings:
        check_settings(setting, model, diffusion, pipeline.grid)
    data = data_config(request.reference, pipeline.image_size if request.size else 0)
    prompts = prompts_for(pipeline, data)
    judge = open_judge(request.features, data, pipeline.image_size, request.device)
    fingerprint = open_source(data).fingerprint()
    with in_use(request.out, "the plan"):
        known = _EarlierTrials.open(request, folder, str(device), fingerprint)

        def measure(settings: Sequence[SampleConfig]) -> list[Tried]:
            timed = _timed(pipeline, settings, prompts, request, known)
            return _judged(pipeline, timed, judge, prompts, request, known)

        tried = measure(settings)
        _check_measure(request, tried)
        best, budget = choose(tried, request.budget_seconds, request.by), request.budget_seconds
        if request.rounds:
            tried = refine(
                tried, budget, request.rounds, lambda s: list(neighbours(s, model, diffusion)), measure,
                request.by,
            )  # fmt: skip
            others = prompts_for(pipeline, data, other=True)
            contenders = list({id(one): one for one in (best, choose(tried, budget, request.by))}.values())
            confirmed = [_confirmed(pipeline, one, judge, others, request, known) for one in contenders]
            best = min(confirmed, key=lambda trial: trial.confirmed or 0.0)
            tried = [next((c for c in confirmed if c.settings == t.settings), t) for t in tried]
        _write(request, tried)
        if request.save:
            write_whole(folder / SAMPLING_FILE, to_toml(best.settings))
    return best


def _check_measure(request: PlanRequest, tried: Sequence[Tried]) -> None:
    """Raise UserError where images are to be chosen by what nothing here can tell."""
    if request.by == "accuracy" and any(t.frechet is not None and t.accuracy is None for t in tried):
        raise UserError(
            "--by accuracy: nothing tells what these images show; expected --features with a classifier for "
            "a model of classes, or --reference shapes:... for one of captions"
        )


def prompts_for(pipeline: Pipeline, data: DataConfig, *, other: bool = False) -> list[str] | None:
    """Captions of the reference as prompts for a model that generates from text; None for other models.
    `other`: of other images, where there are enough of them."""
    if pipeline.tokenizer is None or uses_classes(pipeline):
        return None
    source = open_source(data)
    if not source.has_captions:
        raise UserError(
            f"the model makes images of texts, and {source.name} has no captions; expected a --reference "
            "with captions, such as shapes:test"
        )
    step = max(1, len(source) // PROMPTS)
    some = range(step // 2 if other else 0, len(source), step)
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
            before = read_record(_PlanFile, path, "plan")
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

    def get(self, settings: SampleConfig) -> Tried | None:
        return self.found.get(hash_of([to_dict(settings)]))

    def add(self, tried: Tried) -> None:
        self.found[hash_of([to_dict(tried.settings)])] = tried
        values = {"facts": self.facts, "settings": {key: to_dict(trial) for key, trial in self.found.items()}}
        write_whole(self.path, json.dumps(values, indent=1) + "\n")


def _timed(
    pipeline: Pipeline,
    settings: Sequence[SampleConfig],
    prompts: Sequence[str] | None,
    request: PlanRequest,
    known: _EarlierTrials,
) -> list[Tried]:
    """Each setting with the seconds that an image takes in a full batch: the shorter of two measurements, as
    the first also warms up."""
    line, found = ProgressLine(len(settings), 0, what="settings"), []
    for place, setting in enumerate(settings):
        trial = known.get(setting)
        if trial is None:
            line.show(place, "timing")
            seconds = min(_seconds(pipeline, setting, prompts, request.batch_size) for _ in range(2))
            trial = Tried(settings=setting, seconds_per_image=seconds)
            known.add(trial)
        found.append(trial)
    line.close()
    return found


def _seconds(
    pipeline: Pipeline, settings: SampleConfig, prompts: Sequence[str] | None, batch_size: int
) -> float:
    """The seconds of a batch for each of its images."""
    return generate_batch(pipeline, settings, range(batch_size), prompts=prompts).seconds / batch_size


def _judged(
    pipeline: Pipeline,
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
                pipeline,
                trial.settings,
                judge,
                request.images,
                prompts=prompts,
                seed=request.seed,
                batch_size=request.batch_size,
            )
            trial = replace(trial, frechet=found.frechet, accuracy=found.accuracy)
            known.add(trial)
        done.append(trial)
    line.close()
    return done


def _confirmed(
    pipeline: Pipeline,
    trial: Tried,
    judge: Judge,
    prompts: Sequence[str] | None,
    request: PlanRequest,
    known: _EarlierTrials,
) -> Tried:
    """A setting measured again, with these prompts and other noise."""
    before = known.get(trial.settings)
    if before is not None and before.confirmed is not None:
        return before
    found = measure_quality(
        pipeline,
        trial.settings,
        judge,
        request.images,
        prompts=prompts,
        seed=request.seed + 1,
        batch_size=request.batch_size,
    )
    again = replace(trial, frechet=found.frechet, accuracy=found.accuracy).worse(request.by)
    trial = replace(trial, confirmed=again)
    known.add(trial)
    return trial


def _write(request: PlanRequest, tried: Sequence[Tried]) -> None:
    """Write the table `plan.md` and, where any setting was measured, the picture `plan.png`."""
    best, size = frontier(tried, request.by), f" at {request.size}" if request.size else ""
    lines = [
        f"# Quality against time: {request.model}\n\n",
        f"Fréchet distance in the features `{request.features}` of {request.images} images against "
        f"{request.reference}{size}; time for each image in batches of {request.batch_size} on "
        f"{select_device(request.device)}. "
        "In bold: the frontier, of which nothing quicker is better.\n\n",
        "| setting | time per image | Fréchet distance | as asked |\n|---|---|---|---|\n",
    ]
    for trial in sorted(tried, key=lambda t: t.seconds_per_image):
        if trial.frechet is not None:
            mark = "**" if trial in best else ""
            share = "" if trial.accuracy is None else f"{trial.accuracy:.1%}"
            time_taken = in_time(trial.seconds_per_image)
            lines.append(
                f"| {mark}{trial.in_words()}{mark} | {time_taken} | {trial.frechet:.4g} | {share} |\n"
            )
    for trial in tried:
        if trial.confirmed is not None:
            lines.append(f"\nOther prompts and noise: {trial.in_words()}: {trial.again(request.by)}.\n")
    left_out = sum(trial.frechet is None for trial in tried)
    if left_out:
        lines.append(f"\nTimed but, being slower, not measured: {left_out}.\n")
    write_whole(request.out / "plan.md", "".join(lines))
    if best:
        save_picture(request.out / "plan.png", tried, best, request.budget_seconds)
