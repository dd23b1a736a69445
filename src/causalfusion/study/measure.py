"""The figures of a study: what a trained model generates with S AR steps, beside real images."""

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
from causalfusion.study.recipe import Ground

FILE = "figures.json"


def missing_ar_steps(job: Job, ground: Ground) -> list[int]:
    there = _read(job.folder / FILE)
    return [s for s in job.ar_steps if _key(job.sampling(ground, s), ground) not in there]


def read_figures(job: Job, ground: Ground) -> dict[int, dict[str, float]]:
    """Of each S: `frechet` and, where the judge knows classes, `accuracy`."""
    there = _read(job.folder / FILE)
    return {s: there[_key(job.sampling(ground, s), ground)] for s in job.ar_steps}


def measure_job(job: Job, ground: Ground, device: str) -> None:
    """Add what is missing to the run's file of figures, one S after another."""
    pipeline = Pipeline.load(checkpoints_of(job.folder)[-1], device=select_device(device))
    judge = _judge(ground.features, job.config.data, pipeline.codec.config.image_height, device)
    for num_ar_steps in missing_ar_steps(job, ground):
        settings = job.sampling(ground, num_ar_steps)
        found = measure_quality(pipeline, settings, judge, ground.count, seed=job.seed)
        figures = {"frechet": found.frechet}
        if found.accuracy is not None:
            figures["accuracy"] = found.accuracy
        path = job.folder / FILE
        write_whole(path, json.dumps({**_read(path), _key(settings, ground): figures}, indent=1) + "\n")


@lru_cache(maxsize=1)
def _judge(features: str, data: DataConfig, image_size: int, device: str) -> Judge:
    return open_judge(features, data, image_size, device)


def _key(settings: SampleConfig, ground: Ground) -> str:
    """What a figure depends on beside the model."""
    return hash_of([to_dict(settings), ground.count, ground.features])


@dataclass(frozen=True, kw_only=True)
class _Figures:
    frechet: float
    accuracy: float | None = None

    def __post_init__(self) -> None:
        check(
            self.accuracy is None or 0 <= self.accuracy <= 1, "accuracy", self.accuracy, "a share in [0, 1]"
        )


@dataclass(frozen=True, kw_only=True)
class _File:
    figures: dict[str, _Figures]
    """By what they depend on."""


def _read(path: Path) -> Mapping[str, dict[str, float]]:
    if not path.exists():
        return {}
    try:
        found = from_dict(_File, {"figures": read_json(path, "figures")})
    except UserError as error:
        raise UserError(f"{path}: {error}; delete the file, and the figures are measured again") from None
    return {
        key: {name: value for name, value in vars(one).items() if value is not None}
        for key, one in found.figures.items()
    }
