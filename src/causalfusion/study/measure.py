"""Measuring the figures of a study: the quality of a model's images for each number of AR steps S."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.config.serialize import from_dict, read_json, to_dict
from causalfusion.errors import UserError, check
from causalfusion.evaluate.quality import Judge, measure_quality, open_judge
from causalfusion.files import hash_of, write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.runtime import select_device
from causalfusion.saved.folder import checkpoints_of
from causalfusion.study.grid import Job
from causalfusion.study.recipe import StudyData

FILE = "figures.json"


def missing_ar_steps(job: Job, study_data: StudyData) -> list[int]:
    """The values of S at which the job's model is not measured yet."""
    measured = _read(job.folder / FILE)
    return [s for s in job.ar_steps if _key(job.sampling(study_data, s), study_data) not in measured]


def read_figures(job: Job, study_data: StudyData) -> dict[int, dict[str, float]]:
    """The figures at each S: `frechet` and, if the judge knows classes, `accuracy`."""
    measured = _read(job.folder / FILE)
    return {s: measured[_key(job.sampling(study_data, s), study_data)] for s in job.ar_steps}


def measure_job(job: Job, study_data: StudyData, device: str) -> None:
    """Measure the missing figures and add them to the run's file, one S after another."""
    pipeline = Pipeline.load(checkpoints_of(job.folder)[-1], device=select_device(device))
    judge = _judge(study_data.features, job.config.data, pipeline.codec.config.image_height, device)
    for num_ar_steps in missing_ar_steps(job, study_data):
        settings = job.sampling(study_data, num_ar_steps)
        found = measure_quality(pipeline, settings, judge, study_data.count, seed=job.seed)
        figures = {"frechet": found.frechet}
        if found.accuracy is not None:
            figures["accuracy"] = found.accuracy
        path = job.folder / FILE
        write_whole(path, json.dumps({**_read(path), _key(settings, study_data): figures}, indent=1) + "\n")


@lru_cache(maxsize=1)
def _judge(features: str, data: DataConfig, image_size: int, device: str) -> Judge:
    return open_judge(features, data, image_size, device)


def _key(settings: SampleConfig, study_data: StudyData) -> str:
    """A hash of everything besides the model on which a figure depends."""
    return hash_of([to_dict(settings), study_data.count, study_data.features])


@dataclass(frozen=True, kw_only=True)
class _Figures:
    frechet: float
    accuracy: float | None = None

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
