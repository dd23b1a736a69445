"""`causalfusion plan`: time every setting, measure what can be afforded, name the best in the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.data import open_source
from causalfusion.errors import UserError
from causalfusion.evaluate.quality import Judge, Quality, generate_batch, measure_quality, open_judge
from causalfusion.evaluate.samples.open_images import data_config
from causalfusion.files import in_use, write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.runtime import compute_dtype, select_device, tune_allocator
from causalfusion.planner.candidate import Candidate, open_candidate, prompts_for
from causalfusion.planner.earlier import EarlierTrials
from causalfusion.planner.picture import save_picture
from causalfusion.planner.refine import neighbours, refine
from causalfusion.planner.request import PlanRequest
from causalfusion.planner.sweep import Tried, choose, frontier, in_time
from causalfusion.saved.folder import read_latest
from causalfusion.saved.sampling import write_sampling

BEYOND = 2.0
"""Settings that take up to so many times the budget are measured too: the frontier goes on beyond it."""


def plan(request: PlanRequest) -> Tried:
    """The best setting within the budget. Writes `plan.json`, `plan.md` and `plan.png`; figures that are in
    plan.json are not measured again. `save` writes the model's own settings."""
    device = select_device(request.device)

    def load(folder: Path) -> Pipeline:
        dtype = compute_dtype(request.precision)
        return Pipeline.load(folder, device=device, autocast_dtype=dtype, autoencoder=request.autoencoder)

    tune_allocator()
    candidates = [open_candidate(request, *read_latest(request.model, load))]
    pipeline = candidates[0].pipeline
    for name in request.also:
        candidates.append(open_candidate(request, *read_latest(name, load), str(name)))
        if candidates[-1].pipeline.image_size != pipeline.image_size:
            raise UserError(f"--also {name} makes images of another size than {request.model}")
    data = data_config(request.reference, pipeline.image_size if request.size else 0)
    candidates = [
        replace(each, prompts=prompts_for(each.pipeline, data, request.images)) for each in candidates
    ]
    judge = open_judge(request.features, data, pipeline.image_size, request.device)
    fingerprint = open_source(data).fingerprint()
    with in_use(request.out, "the plan"):
        known = EarlierTrials.open(request, candidates[0], str(device), fingerprint)
        tried = [
            trial for each in candidates for trial in _measured(each, each.settings, judge, request, known)
        ]
        _check_measure(request, tried)
        best = choose(tried, request.budget_seconds, request.by)
        if request.rounds:
            tried, best = _refined(candidates, tried, judge, data, request, known)
        _write(request, tried)
        if request.save:
            write_sampling(_owner(candidates, best).folder, best.settings)
    return best


def _check_measure(request: PlanRequest, tried: Sequence[Tried]) -> None:
    """Raise UserError where images are to be chosen by what nothing here can tell."""
    if request.by == "accuracy" and any(t.frechet is not None and t.accuracy is None for t in tried):
        raise UserError(
            "--by accuracy: nothing tells what these images show; expected --features with a classifier for "
            "a model of classes, or --reference shapes:... for one of captions"
        )


def _measured(
    candidate: Candidate,
    settings: Sequence[SampleConfig],
    judge: Judge,
    request: PlanRequest,
    known: EarlierTrials,
) -> list[Tried]:
    return _judged(candidate, _timed(candidate, settings, request, known), judge, request, known)


def _refined(
    candidates: Sequence[Candidate],
    tried: Sequence[Tried],
    judge: Judge,
    data: DataConfig,
    request: PlanRequest,
    known: EarlierTrials,
) -> tuple[list[Tried], Tried]:
    """(All that was tried, with changes of the best setting; which one, that setting or the best of its
    changes, is the better with other prompts and noise)."""
    budget = request.budget_seconds
    first = _owner(candidates, choose(tried, budget, request.by))
    model, diffusion = first.pipeline.model.config, first.pipeline.spec.diffusion
    found = refine(
        [trial for trial in tried if trial.model == first.name],
        budget,
        request.rounds,
        lambda settings: [each for each in neighbours(settings, model, diffusion) if first.can(each)],
        lambda settings: _measured(first, settings, judge, request, known),
        request.by,
    )
    found += [trial for trial in tried if trial.model != first.name]
    contenders = {id(one): one for one in (choose(t, budget, request.by) for t in (tried, found))}
    others: dict[str, Candidate] = {}
    for key, one in contenders.items():
        if one.confirmed_as(request.by) is None:
            if one.model not in others:
                owner = _owner(candidates, one)
                prompts = prompts_for(owner.pipeline, data, request.images, other=True)
                others[one.model] = replace(owner, prompts=prompts)
            contenders[key] = _confirmed(others[one.model], one, judge, request, known)
    best = min(contenders.values(), key=lambda trial: trial.confirmed_as(request.by) or 0.0)
    return [contenders.get(id(trial), trial) for trial in found], best


def _owner(candidates: Sequence[Candidate], trial: Tried) -> Candidate:
    return next(each for each in candidates if each.name == trial.model)


def _confirmed(
    candidate: Candidate, trial: Tried, judge: Judge, request: PlanRequest, known: EarlierTrials
) -> Tried:
    """A setting measured again, with the candidate's prompts, which are others, and other noise."""
    found = _quality(candidate, trial, judge, request, request.seed + 1)
    again = replace(trial, frechet=found.frechet, accuracy=found.accuracy).worse(request.by)
    trial = replace(trial, confirmed=again, confirmed_by=request.by)
    known.add(candidate.key(trial.settings), trial)
    return trial


def _quality(candidate: Candidate, trial: Tried, judge: Judge, request: PlanRequest, seed: int) -> Quality:
    return measure_quality(
        candidate.pipeline,
        trial.settings,
        judge,
        request.images,
        prompts=candidate.prompts,
        seed=seed,
        batch_size=request.batch_size,
    )


def _timed(
    candidate: Candidate, settings: Sequence[SampleConfig], request: PlanRequest, known: EarlierTrials
) -> list[Tried]:
    """Each setting with the seconds that an image takes in a full batch: the shorter of two measurements, as
    the first also warms up."""
    line, found = ProgressLine(len(settings), 0, what="settings"), []
    for place, setting in enumerate(settings):
        key = candidate.key(setting)
        trial = known.get(key)
        if trial is None:
            line.show(place, "timing")
            seconds = min(_seconds(candidate, setting, request.batch_size) for _ in range(2))
            trial = Tried(settings=setting, seconds_per_image=seconds)
            known.add(key, trial)
        trial = replace(trial, model=candidate.name)
        found.append(trial)
    line.close()
    return found


def _seconds(candidate: Candidate, settings: SampleConfig, batch_size: int) -> float:
    """The seconds of a batch for each of its images."""
    batch = generate_batch(candidate.pipeline, settings, range(batch_size), prompts=candidate.prompts)
    return batch.seconds / batch_size


def _judged(
    candidate: Candidate,
    tried: Sequence[Tried],
    judge: Judge,
    request: PlanRequest,
    known: EarlierTrials,
) -> list[Tried]:
    """The settings, with the quality of those that take at most BEYOND times the budget."""
    affordable = [trial for trial in tried if trial.seconds_per_image <= BEYOND * request.budget_seconds]
    line, done = ProgressLine(len(affordable), 0, what="settings"), []
    for trial in tried:
        if trial in affordable and trial.frechet is None:
            line.show(len(done), trial.in_words())
            found = _quality(candidate, trial, judge, request, request.seed)
            trial = replace(trial, frechet=found.frechet, accuracy=found.accuracy)
            known.add(candidate.key(trial.settings), trial)
        done.append(trial)
    line.close()
    return done


def _write(request: PlanRequest, tried: Sequence[Tried]) -> None:
    """Write the table `plan.md` and, where any setting was measured, the picture `plan.png`."""
    best, size = frontier(tried, request.by), f" at {request.size}" if request.size else ""
    also = "".join(f", {name}" for name in request.also)
    lines = [
        f"# Quality against time: {request.model}{also}\n\n",
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
        if trial.confirmed_as(request.by) is not None:
            lines.append(f"\nOther prompts and noise: {trial.in_words()}: {trial.again(request.by)}.\n")
    left_out = sum(trial.frechet is None for trial in tried)
    if left_out:
        lines.append(f"\nTimed but, being slower, not measured: {left_out}.\n")
    write_whole(request.out / "plan.md", "".join(lines))
    if best:
        save_picture(request.out / "plan.png", tried, best, request.budget_seconds)
