"""Measuring the figures of a study: the quality of a model's images for each number of AR steps S."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from causalfusion.config import DataConfig
from causalfusion.config.serialize import from_dict, read_json, to_dict
from causalfusion.errors import UserError, check
from causalfusion.evaluate.quality import Judge, measure_quality, open_judge
from causalfusion.files import hash_of, write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.runtime import select_device
from causalfusion.saved.folder import checkpoints_of, load_spec
from causalfusion.study.grid import Job
from causalfusion.study.recipe import StudyData

FILE = "figures.json"


def is_measured(job: Job, study_data: StudyData) -> bool:
    """True if nothing of the job's figures is missing."""
    measured = _read(job.folder / FILE)
    return all(_key(point, job, study_data) in measured for point in _points(job))


@dataclass(frozen=True)
class Point:
    """The subject of one figure: a model after a share of its training, at a number of AR steps."""

    num_ar_steps: int
    budget: float = 1.0


def _points(job: Job) -> list[Point]:
    """The end of training at each S, and each budget at the first."""
    budgets = [Point(job.ar_steps[0], b) for b in job.budgets if b < 1 and job.ar_steps]
    return [Point(s) for s in job.ar_steps] + budgets


def read_figures(job: Job, study_data: StudyData) -> dict[int, dict[str, float]]:
    """The figures at each S: `frechet`, if the judge knows classes `accuracy`, and `seconds` per image."""
    measured = _read(job.folder / FILE)
    return {s: measured[_key(Point(s), job, study_data)] for s in job.ar_steps}


def read_budgets(job: Job, study_data: StudyData) -> dict[float, dict[str, float]]:
    """The figures after each share of the training, at the job's first S."""
    measured, first = _read(job.folder / FILE), job.ar_steps[0]
    return {b: measured[_key(Point(first, b), job, study_data)] for b in job.budgets}


def measure_job(job: Job, study_data: StudyData, device: str) -> None:
    """Measure the missing figures and add them to the run's file, one after another."""
    path, pipeline, loaded = job.folder / FILE, None, None
    for point in _points(job):
        if _key(point, job, study_data) in _read(path):
            continue
        checkpoint = _checkpoint_of(job, point.budget)
        if pipeline is None or checkpoint != loaded:
            pipeline, loaded = Pipeline.load(checkpoint, device=select_device(device)), checkpoint
        judge = _judge(study_data.features, job.config.data, pipeline.image_size, device)
        settings = job.sampling(study_data, point.num_ar_steps)
        found = measure_quality(pipeline, settings, judge, study_data.count, seed=job.seed)
        figures = {"frechet": found.frechet, "seconds": found.seconds_per_image}
        if found.accuracy is not None:
            figures["accuracy"] = found.accuracy
        content = {**_read(path), _key(point, job, study_data): figures}
        write_whole(path, json.dumps(content, indent=1) + "\n")


def _checkpoint_of(job: Job, budget: float) -> Path:
    """The first checkpoint after this share of the training. Raises UserError if it is gone."""
    checkpoints = checkpoints_of(job.folder)
    if budget >= 1:
        return checkpoints[-1]
    train = job.config.train
    wanted = train.checkpoint_every * round(budget / job.budgets[0])
    for checkpoint in checkpoints:
        if load_spec(checkpoint).images_seen >= wanted * train.batch_size:
            return checkpoint
    raise UserError(f"{job.folder} has no checkpoint after {budget:.0%} of its training; train it anew")


@lru_cache(maxsize=1)
def _judge(features: str, data: DataConfig, image_size: tuple[int, int], device: str) -> Judge:
    return open_judge(features, data, image_size, device)


def _key(point: Point, job: Job, study_data: StudyData) -> str:
    """A hash of everything on which a figure depends, but for those settings of the run that cannot change:
    it may have gone on since it was measured."""
    settings, train = job.sampling(study_data, point.num_ar_steps), job.config.train
    length = [train.images, train.epochs, train.minutes]
    parts = [to_dict(settings), study_data.count, study_data.features, *length]
    return hash_of(parts if point.budget == 1 else [*parts, point.budget])


@dataclass(frozen=True, kw_only=True)
class _Figures:
    frechet: float
    accuracy: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        in_range = self.accuracy is None or 0 <= self.accuracy <= 1
        check(in_range, "accuracy", self.accuracy, "a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class _FiguresFile:
    figures: dict[str, _Figures]
    """Figures by `_key`."""


def _read(path: Path) -> Mapping[str, dict[str, float]]:
    """The measured figures by `_key`; empty if there is no file. Raises UserError if it is damaged."""
    if not path.exists():
        return {}
    try:
        found = from_dict(_FiguresFile, {"figures": read_json(path, "figures")})
    except UserError as error:
        raise UserError(f"{path}: {error}; delete the file, and the figures are measured again") from None
    return {
        key: {name: value for name, value in vars(figures).items() if value is not None}
        for key, figures in found.figures.items()
    }
