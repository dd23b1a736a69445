"""`causalfusion train`: one run from its configuration to its last checkpoint."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from causalfusion.config import RunConfig
from causalfusion.errors import STOPPED, TrainingStopped
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.processes import World, join_world
from causalfusion.machine.progress import tell
from causalfusion.machine.runtime import tune_allocator
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.grids import CAPTIONS, Interval, save_grid
from causalfusion.train.loss_map import loss_map
from causalfusion.train.opening import open_run
from causalfusion.train.reports import Reports
from causalfusion.train.stopping import StopRequest, run_in_use

_STOP, _OVER, _GRID, _CHECKPOINT = 8, 4, 2, 1
"""What may be wanted after a step; a request to stop is the largest, and comes first."""


def train(config: RunConfig, *, device: str = "auto", show_progress: bool = True) -> Path:
    """Train, or go on from the run's last checkpoint; returns the model folder of the last one.

    Raises TrainingStopped where a signal ended the run before its last image; all is saved then. Raises
    UserError where another process works on the same run.
    """
    tune_allocator()
    with join_world(device) as world, run_in_use(Path(config.out), world):
        run = _Run(config, world, show_progress)
        folder = run.go()
    if run.unfinished:
        if not world.is_main:
            raise SystemExit(STOPPED)
        raise TrainingStopped(config.out, run.trainer.progress.images_seen, run.config.train.images)
    return folder


class _Run:
    """The loop: a step, and what is due between two steps."""

    def __init__(self, config: RunConfig, world: World, show_progress: bool) -> None:
        self.opened = open_run(config, world)
        self.config, self.data, self.trainer = self.opened.config, self.opened.data, self.opened.trainer
        self.world, self.folder = world, Path(config.out)
        self.show = show_progress and world.is_main
        self.stop = StopRequest()
        self.over = False
        """The training time that was asked for is used up."""
        self.last_saved = self.trainer.progress.images_seen if self.opened.resumed else -1
        self.save_due = False

    @property
    def unfinished(self) -> bool:
        return self.trainer.progress.images_seen < self.config.train.images and not self.over

    def go(self) -> Path:
        progress, train = self.trainer.progress, self.config.train
        self.over = train.minutes > 0 and progress.seconds >= 60 * train.minutes
        if not self.unfinished:
            if self.show:
                tell(self._finished())
            return checkpoints_of(self.folder)[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reports = Reports(self.opened, self.folder, self.world, show=self.show)
        self.begun = time.monotonic()
        self.grids = Interval(train.sample_minutes, self.begun)
        self.checkpoints = Interval(train.checkpoint_minutes, self.begun)
        try:
            with self.stop.on_signals():
                self._steps()
        finally:
            self.trainer.close()
            self.reports.close()
        self.reports.check()
        return checkpoints_of(self.folder)[-1]

    def _finished(self) -> str:
        progress, train = self.trainer.progress, self.config.train
        longer = "train.minutes" if self.over else "train.images"
        now = train.minutes if self.over else train.images
        return (
            f"{self.folder} is finished: {progress.images_seen:,} images, {progress.seconds / 60:.1f} "
            f"minutes of training; a larger {longer} goes on (now {now:,})"
        )

    def _steps(self) -> None:
        trainer, train = self.trainer, self.config.train
        batches = self.data.batches(trainer.progress.images_seen)
        # Closed whatever happens: a traceback would keep its workers alive, and the exit waits for them.
        with closing(self.reports.clock.timed(batches)) as feed:
            while self.unfinished:
                begin = time.monotonic()
                batch = next(feed)
                result = trainer.step(batch)
                seconds = trainer.progress.seconds + time.monotonic() - begin
                if train.minutes:  # the learning rate may follow it: alike on all processes
                    seconds = self.world.max(round(1000 * seconds)) / 1000
                trainer.progress = replace(trainer.progress, seconds=seconds)
                wanted = self._wanted()
                self.over = bool(wanted & _OVER)
                self.reports.after_step(result, len(batch.labels), done=not self.unfinished)
                if self.unfinished:
                    self._between_steps(wanted)
                    if wanted & _STOP:
                        self._save(finish=True)
                        return
        self._evaluate()
        if train.sample_every or (train.sample_minutes and time.monotonic() - self.begun > 60):
            self._sample()
        self._save(finish=True)

    def _wanted(self) -> int:
        """What time and signals ask for, alike on all processes: the main one's clock counts."""
        wanted = _STOP * (self.stop.requested or self.reports.failed)
        if self.world.is_main:
            limit, seconds = self.config.train.minutes, self.trainer.progress.seconds
            wanted |= _OVER * (limit > 0 and seconds >= 60 * limit)
            wanted |= _GRID * self.grids.due() | _CHECKPOINT * self.checkpoints.due()
        return self.world.max(wanted)

    def _between_steps(self, wanted: int) -> None:
        train, step = self.config.train, self.trainer.progress.train_step
        with self.reports.clock.paused(), self.reports.display.clock.paused():
            if _due(step, train.evaluate_every):
                self._evaluate()
            if _due(step, train.sample_every) or wanted & _GRID:
                self._sample()
            self.save_due |= _due(step, train.checkpoint_every) or bool(wanted & _CHECKPOINT)
            if self.save_due and not self.trainer.progress.skipped_in_a_row:  # later, if the run recovers
                self._save()

    def _evaluate(self) -> None:
        """The loss map of the EMA weights, by the main process alone, or by all of a sharded model."""
        if self._takes_part and self.config.train.evaluate_every:
            batches = self.data.evaluation_batches(min(self.config.train.batch_size, 128))
            with self.trainer.averaged_model() as model:
                found = loss_map(model, self.trainer.process, self.config, batches, self.trainer.markers)
            self.reports.evaluation(found)
        self.world.barrier()

    def _sample(self) -> None:
        """A grid of samples of the EMA weights."""
        begin = time.monotonic()
        if self._takes_part:
            file = self.folder / "samples" / f"{self.trainer.progress.images_seen:012d}.png"
            captions = self.data.held_out_captions(CAPTIONS)
            with self.trainer.averaged_model() as model:
                pipeline = Pipeline(
                    model, self.data.codec, self.opened.spec, self.trainer.process,
                    tokenizer=self.data.tokenizer,
                )  # fmt: skip
                save_grid(pipeline, self.config.sample, captions, file if self.world.is_main else None)
            self.reports.display.say(f"samples: {file}")
        self.grids.done(begin)
        self.world.barrier()

    @property
    def _takes_part(self) -> bool:
        """This process computes where only the main one is needed: of a sharded model, all have to."""
        return self.world.is_main or self.trainer.sharded

    def _save(self, *, finish: bool = False) -> None:
        begin = time.monotonic()
        if self.trainer.progress.images_seen != self.last_saved:
            self.trainer.save(self.opened.spec, self.opened.data_record, self.folder)
            self.save_due = False
            self.last_saved = self.trainer.progress.images_seen
        if finish:
            self.trainer.finish_saving()
        self.checkpoints.done(begin)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
