"""The work between train steps: the loss of held-out images, a grid of samples, a snapshot of averages, a
checkpoint."""

from __future__ import annotations

import time
from enum import IntFlag
from pathlib import Path

from causalfusion.config import RunConfig
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.processes import World
from causalfusion.train.captioning import CaptionObjective
from causalfusion.train.classification import ClassifyObjective, accuracy_of
from causalfusion.train.grids import CAPTIONS, SIZES, Periodic, save_grid
from causalfusion.train.loss_map import loss_map
from causalfusion.train.opening import OpenRun
from causalfusion.train.reports import Reports
from causalfusion.train.step import Objective

LONG = 60
"""Seconds of training, over all sittings, from which on a run ends with a grid of samples by time."""


class Due(IntFlag):
    """Requests of time and signals after a train step; processes agree on the largest that one of them has,
    so a request to stop comes first."""

    CHECKPOINT, GRID, OVER, STOP = 1, 2, 4, 8


class Upkeep:
    """The work between the steps of a run. All processes come here; most of it is the main one's."""

    def __init__(self, run: OpenRun, folder: Path, world: World, reports: Reports) -> None:
        self.run, self.folder, self.world, self.reports = run, folder, world, reports
        begun = time.monotonic()
        self.grids = Periodic(run.config.train.sample_minutes, begun)
        self.checkpoints = Periodic(run.config.train.checkpoint_minutes, begun)
        self.last_saved = run.trainer.progress.images_seen if run.resumed else -1
        self.save_due = False

    def due(self) -> Due:
        """The work that is due by this process's clock."""
        return Due(Due.GRID * self.grids.due() | Due.CHECKPOINT * self.checkpoints.due())

    def after_step(self, due: Due) -> None:
        """Do what is due by time or by the number of train steps."""
        train, progress = self.run.config.train, self.run.trainer.progress
        with self.reports.clock.paused(), self.reports.display.clock.paused():
            if _every(train.evaluate_every, progress.train_step):
                self.evaluate()
            if _every(train.sample_every, progress.train_step) or due & Due.GRID:
                self.sample()
            if self._snapshot_due():
                self.run.trainer.save_ema_snapshot(self.folder)
            by_steps = _every(train.checkpoint_every, progress.train_step)
            self.save_due |= by_steps or bool(due & Due.CHECKPOINT)
            if self.save_due and not progress.skipped_in_a_row:  # later, if the run recovers
                self.save()

    def finish(self, *, ended: bool) -> None:
        """Save the run for good; first, where it has `ended` and was not just stopped, measure and sample."""
        train = self.run.config.train
        if ended:
            self.evaluate()
            trained = self.world.max(round(self.run.trainer.progress.seconds))  # alike on all processes
            if train.sample_every or (train.sample_minutes and trained >= LONG):
                self.sample()
            if train.ema_widths:
                self.run.trainer.save_ema_snapshot(self.folder)
        self.save()
        self.run.trainer.finish_saving()

    def evaluate(self) -> None:
        """The loss map of the EMA weights, by the main process alone, or by all of a sharded model."""
        trainer, config, objective = self.run.trainer, self.run.config, self.run.trainer.objective
        if self._takes_part and config.train.evaluate_every:
            batches = self.run.data.evaluation_batches(examples_together(config))
            with trainer.averaged_model() as model:
                if isinstance(objective, ClassifyObjective):
                    self.reports.accuracy(accuracy_of(objective, model, batches))
                else:
                    kind = CaptionObjective if isinstance(objective, CaptionObjective) else Objective
                    self.reports.evaluation(
                        loss_map(model, objective.process, config, batches, objective.markers, kind)
                    )
        self.world.barrier()

    def sample(self) -> None:
        """A grid of samples of the EMA weights."""
        begin = time.monotonic()
        if self._takes_part:
            trainer, data = self.run.trainer, self.run.data
            file = self.folder / "samples" / f"{trainer.progress.images_seen:012d}.png"
            captions, documents = data.held_out_captions(CAPTIONS), data.held_out_documents(CAPTIONS)
            with trainer.averaged_model() as model:
                process = trainer.objective.process
                pipeline = Pipeline(model, data.codec, self.run.spec, process, tokenizer=data.tokenizer)
                of_sizes = [pipeline.at(*size) for size in data.frequent_sizes(SIZES)] or [pipeline]
                to_file = file if self.world.is_main else None
                save_grid(of_sizes, self.run.config.sample, captions, documents, to_file)
            self.reports.samples(file)
            self.reports.display.say(f"samples: {file}")
        self.grids.done(begin)
        self.world.barrier()

    @property
    def _takes_part(self) -> bool:
        """This process computes where only the main one is needed: of a sharded model, all have to."""
        return self.world.is_main or self.run.trainer.sharded

    def _snapshot_due(self) -> bool:
        """The last train step reached a multiple of train.ema_snapshot_images."""
        train, seen = self.run.config.train, self.run.trainer.progress.images_seen
        every = train.ema_snapshot_images
        return every > 0 and seen // every > (seen - train.batch_size) // every

    def save(self) -> None:
        """Save the run, unless it is saved."""
        begin, seen = time.monotonic(), self.run.trainer.progress.images_seen
        if seen != self.last_saved:
            self.run.trainer.save(self.run.spec, self.run.data_record, self.folder)
            self.save_due = False
            self.last_saved = seen
        self.checkpoints.done(begin)


def examples_together(config: RunConfig) -> int:
    """Held-out examples in a batch: whole sequences, as what is left of the last one is left out."""
    group = config.text.examples_per_sequence
    return max(min(config.train.batch_size, 128) // group, 1) * group


def _every(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
