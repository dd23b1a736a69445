"""`causalfusion study`: train and measure the runs of a study that are left, and write its tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from causalfusion.config import RunConfig
from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import UserError
from causalfusion.files import in_use
from causalfusion.machine.runtime import select_device
from causalfusion.saved.folder import checkpoints_of, load_spec
from causalfusion.study.grid import Job, jobs_of
from causalfusion.study.recipe import Study, StudyData, load_study
from causalfusion.study.request import StudyRequest
from causalfusion.study.systems import write_systems
from causalfusion.study.tables import Figures, write_results


@dataclass(frozen=True)
class _Planned:
    """A study that was read and checked, with the runs that it needs."""

    name: str
    """Its name in the output and of its folder."""
    study: Study
    jobs: list[Job]


def run_studies(names: Sequence[str], study_data: StudyData, request: StudyRequest) -> list[Path]:
    """The folders with `results.md`, `results.csv` and `results.png` of studies, given by name or by file.
    All are read and checked before the first begins. The same command goes on after any interruption; a run
    or a figure that is there is not made again. Raises UserError."""
    out = request.out / Path(request.data).stem
    planned: list[_Planned] = []
    called = [Path(name).stem for name in names]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise UserError(
            f"two of the studies are called {twice[0]}, and so would be their folders; expected "
            "other names, or one after the other with another --out each"
        )
    for name in names:
        study = load_study(name).on(study_data.num_tokens)
        jobs = jobs_of(study, study_data, request.seeds, out)
        check_before(jobs, study_data)
        planned.append(_Planned(Path(name).stem, study, jobs))
    return [_run_study(planned_study, study_data, request, out) for planned_study in planned]


def _run_study(planned: _Planned, study_data: StudyData, request: StudyRequest, out: Path) -> Path:
    folder = out / planned.name
    with in_use(out, "the study's folder"):  # its runs are shared by all studies there
        _train_and_measure(planned.jobs, planned.name, study_data, request)
        figures = {(job.variant, job.seed): _figures(job, study_data) for job in planned.jobs}
        folder.mkdir(parents=True, exist_ok=True)
        images = {job.variant: job.config.train.images for job in planned.jobs}
        write_results(folder, planned.study, study_data, out.name, request.seeds, figures, images)
        if planned.study.budgets:
            write_systems(folder, planned.study, study_data, planned.jobs)
    print((folder / "results.md").read_text("utf-8"))
    return folder


def _train_and_measure(jobs: Sequence[Job], study: str, study_data: StudyData, request: StudyRequest) -> None:
    """Do what is left of the jobs; `study` names them in the output."""
    for name, work, done in (("train", _train, _is_trained), ("measure", _measure, _is_measured)):
        left = _without_doubles([job for job in jobs if not done(job, study_data)])
        if left:
            print(f"{study}: {len(left)} of {len(jobs)} runs to {name}", flush=True)
            _in_parallel(work, left, study_data, request)


def check_before(jobs: Sequence[Job], study_data: StudyData) -> None:
    """Raise UserError now for faults of a study that would otherwise show after hours of training."""
    from causalfusion.data import open_source
    from causalfusion.estimate.planned import plan_run
    from causalfusion.evaluate.features.open import open_extractor
    from causalfusion.factorization import num_ar_steps_probabilities
    from causalfusion.generate.settings import check_settings

    open_extractor(study_data.features, "cpu")
    open_source(jobs[0].config.data)
    grids: dict[str, tuple[int, int]] = {}  # the data are opened once for all variants that see the same
    for job in jobs:
        config = job.config
        key = repr((config.data, config.codec))
        if key not in grids:
            model = plan_run(config).config.model
            grids[key] = (model.grid_height, model.grid_width)
        found = math.prod(grids[key])
        if found != study_data.num_tokens:
            raise UserError(
                f"the data file says num_tokens = {study_data.num_tokens}; images of its recipes have {found}"
            )
        try:
            num_ar_steps_probabilities(found, config.factorization)
            if not job.ar_steps:
                raise UserError(f"each of its ar_steps is larger than the {found} tokens of an image")
            for s in job.ar_steps:
                check_settings(job.sampling(study_data, s), config.model, config.diffusion, grids[key])
        except UserError as error:
            raise UserError(f"the variant {job.variant!r}: {error}") from None


def _is_trained(job: Job, _: StudyData) -> bool:
    from causalfusion.train.resume import stored_settings

    checkpoints = checkpoints_of(job.folder)
    if not checkpoints:
        return False
    before, train = flat(stored_settings(checkpoints[-1])), job.config.train
    _refuse_other_run(job, before)
    images = train.images
    if train.epochs:  # which the run knows in images
        images = before["train.images"] if before.get("train.epochs") == train.epochs else math.inf
    return load_spec(checkpoints[-1]).images_seen >= images


_OF_RUN = ("train.", "data.", "diffusion.", "factorization.")
"""Tables whose settings are stored as they are given."""
_FILLED = ("model.", "codec.", "text.", "align.")
"""Tables with settings that follow from the data, or a model to begin with, where they are not given."""
_OF_DATA = (
    "model.num_classes",
    "model.grid_height",
    "model.grid_width",
    "model.token_dim",
    "model.vocab_size",
    "codec.normalization",
)
"""Settings that follow from the data though they are given."""


def _refuse_other_run(job: Job, before: Mapping[str, Any]) -> None:
    """Raise UserError for a run, with the settings `before`, that another study made, or this one with other
    settings for all variants, which its folder does not tell. A run that began with a model has some of that
    model's."""
    from causalfusion.train.resume import MAY_CHANGE, MAY_MOVE

    plain, now, train = flat(to_dict(RunConfig())), flat(to_dict(job.config)), job.config.train
    for name, value in now.items():
        stored = name.startswith(_OF_RUN) and value != "auto"
        given = name.startswith(_FILLED) and value != plain[name] and not train.init
        other = before.get(name, value) != value and name not in (*_OF_DATA, *MAY_CHANGE, *MAY_MOVE)
        if name == "train.images":
            other = before.get(name, value) > value and not train.epochs
        if (stored or given) and other:
            raise UserError(
                f"{job.folder} holds a run with {name} {before[name]}, the variant {job.variant!r} has "
                f"{value}; give another --out"
            )


def _is_measured(job: Job, study_data: StudyData) -> bool:
    from causalfusion.study.measure import is_measured

    return is_measured(job, study_data)


def _train(job: Job, _: StudyData, device: str) -> None:
    from causalfusion.train.run import train

    train(job.config, device=device, show_progress=False)


def _measure(job: Job, study_data: StudyData, device: str) -> None:
    from causalfusion.study.measure import measure_job

    measure_job(job, study_data, device)


def _figures(job: Job, study_data: StudyData) -> Figures:
    from causalfusion.study.measure import read_figures

    return read_figures(job, study_data)


def _without_doubles(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, with only one of those that are the same run."""
    return list({job.folder: job for job in reversed(jobs)}.values())[::-1]


Work = Callable[[Job, StudyData, str], None]


def _in_parallel(work: Work, jobs: Sequence[Job], study_data: StudyData, request: StudyRequest) -> None:
    """Do the work of each job, `request.workers` at a time in processes of their own."""
    if request.workers == 1:
        for number, job in enumerate(jobs, 1):
            work(job, study_data, request.device)
            _say(number, len(jobs), job)
        return
    threads = max(1, (os.cpu_count() or 1) // request.workers)
    # A fresh process for every run: nothing of one is left in the next.
    with ProcessPoolExecutor(
        request.workers, get_context("spawn"), _use_threads, (threads,), max_tasks_per_child=1
    ) as pool:
        places = {
            pool.submit(work, job, study_data, _device(request.device, number)): job
            for number, job in enumerate(jobs)
        }
        waiting = set(places)
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    _say(len(jobs) - len(waiting), len(jobs), places[future])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _device(name: str, number: int) -> str:
    """The device of a run by its number: runs take the GPUs in turn where `name` leaves the choice open."""
    import torch

    chosen = select_device(name)
    if chosen.type != "cuda" or chosen.index is not None:
        return name
    return f"cuda:{number % torch.cuda.device_count()}"


def _say(number: int, total: int, job: Job) -> None:
    print(f"{number}/{total}  {job.variant}, seed {job.seed}  ({job.folder})", flush=True)
