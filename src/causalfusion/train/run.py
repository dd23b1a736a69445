"""`causalfusion train`: one run from its configuration to its last checkpoint."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from causalfusion.config import RunConfig
from causalfusion.data.folder import require_elsewhere
from causalfusion.errors import STOPPED, TrainingStopped
from causalfusion.machine.processes import World, join_world
from causalfusion.machine.progress import tell
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.ema_snapshots import remove_later_snapshots
from causalfusion.train.opening import OpenRun, open_run
from causalfusion.train.reports import Reports
from causalfusion.train.stopping import StopRequest, run_in_use
from causalfusion.train.upkeep import Due, Upkeep


def train(config: RunConfig, *, device: str = "auto", show_progress: bool = True) -> Path:
    """Train, or go on from the run's last checkpoint; returns the model folder of the last one.

    Raises TrainingStopped where a signal ended the run before its last image; all is saved then. Raises
    UserError where another process works on the same run.
    """
    folder = Path(config.out)
    require_elsewhere(folder, config.data)
    with join_world(device) as world, run_in_use(folder, world):
        run = open_run(config, world)
        loop = TrainingLoop(run, world)
        show = show_progress and world.is_main
        if show and config.train.precision == "auto" and not run.resumed:
            tell(f"train.precision auto: {run.config.train.precision}, which is faster on this machine")
        if show and not run.resumed:
            _tell_of_warmup(run.config)
        if not loop.finished:
            loop.go(folder, show=show)
            adapts = run.config.finetune.base and run.config.finetune.adapter != "none"
            if show and loop.finished and not adapts:  # an adapter's own line is told where it is written
                tell(_what_next(run, folder))
        elif show:
            tell(_is_finished(run, folder, out_of_time=loop.out_of_time))
        last = checkpoints_of(folder)[-1]
    if not loop.finished:
        if not world.is_main:
            raise SystemExit(STOPPED)
        raise TrainingStopped(config.out, run.trainer.progress.images_seen, run.config.train.images)
    return last


class TrainingLoop:
    """A train step, then what is due between two, until the images or the time are used up."""

    def __init__(self, run: OpenRun, world: World) -> None:
        self.run, self.world, self.trainer = run, world, run.trainer
        self.stop = StopRequest()
        self.out_of_time = self._time_is_up()

    @property
    def finished(self) -> bool:
        return self.trainer.progress.images_seen >= self.run.config.train.images or self.out_of_time

    def go(self, folder: Path, *, show: bool) -> None:
        """Train until the end, or until a signal; the run is saved then."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.world.is_main:
            remove_later_snapshots(folder, self.trainer.progress.images_seen)
        reports = Reports(self.run, folder, self.world, show=show)
        upkeep = Upkeep(self.run, folder, self.world, reports)
        try:
            with self.stop.on_signals():
                self._steps(reports, upkeep)
                upkeep.finish(ended=self.finished)
        finally:
            self.trainer.close()
            reports.close()
        reports.check()

    def _steps(self, reports: Reports, upkeep: Upkeep) -> None:
        """Step until the end, or until a signal."""
        batches = self.run.data.batches(self.trainer.progress.images_seen)
        due = Due(0)
        # Closed whatever happens: a traceback would keep its workers alive, and the exit waits for them.
        with closing(reports.clock.timed(batches)) as feed:
            while not (self.finished or due & Due.STOP):
                begin = time.monotonic()
                batch = next(feed)
                result = self.trainer.step(batch)
                self._add_time(time.monotonic() - begin)
                due = self._due(reports, upkeep)
                self.out_of_time = bool(due & Due.OVER)
                reports.after_step(result, len(batch.tokens), done=self.finished)
                if not self.finished:
                    upkeep.after_step(due)

    def _add_time(self, seconds: float) -> None:
        progress = self.trainer.progress
        seconds += progress.seconds
        if self.run.config.train.minutes:  # the learning rate may follow it: alike on all processes
            seconds = self.world.max(round(1000 * seconds)) / 1000
        self.trainer.progress = replace(progress, seconds=seconds)

    def _due(self, reports: Reports, upkeep: Upkeep) -> Due:
        """The work that is due, alike on all processes: the main one's clock counts, and a signal to any."""
        due = Due.STOP * (self.stop.requested or reports.failed)
        if self.world.is_main:
            due |= Due.OVER * self._time_is_up() | upkeep.due()
        return Due(self.world.max(due))

    def _time_is_up(self) -> bool:
        minutes = self.run.config.train.minutes
        return minutes > 0 and self.trainer.progress.seconds >= 60 * minutes


def _tell_of_warmup(config: RunConfig) -> None:
    train = config.train
    if train.warmup_images >= train.images:
        tell(
            f"note: the learning rate rises over {train.warmup_images:,} images (train.warmup_images) and "
            f"the run has {train.images:,}: it never gets there; give fewer, or more train.images"
        )


def _what_next(run: OpenRun, folder: Path) -> str:
    """The line at the end of a run: where it is, and the command that uses it."""
    task, command = run.config.finetune.task, "sample"
    if task in ("classify", "caption"):
        command = f"{task} IMAGES"
    elif run.spec.model.text_only:
        command = "complete TEXT"
    return f"{folder}: causalfusion {command} --model {folder}"


def _is_finished(run: OpenRun, folder: Path, *, out_of_time: bool) -> str:
    """The line about a run that has nothing left to do."""
    progress, train = run.trainer.progress, run.config.train
    longer = "minutes" if out_of_time else "epochs" if train.epochs else "images"
    return (
        f"{folder} is finished: {progress.images_seen:,} images, {progress.seconds / 60:.1f} "
        f"minutes of training; a larger train.{longer} goes on (now {getattr(train, longer):,})"
    )
