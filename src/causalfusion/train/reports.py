"""Reports of a run: lines on the terminal, records in its log."""

from __future__ import annotations

import math
from dataclasses import replace
from math import nan
from pathlib import Path

from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import compute_dtype, peak_rate
from causalfusion.model.arithmetic import train_step_flops
from causalfusion.pictures.charts import save_loss_map
from causalfusion.train.classification import Accuracy
from causalfusion.train.clock import Clock
from causalfusion.train.display import Display, beginning
from causalfusion.train.log import RunLog
from causalfusion.train.loss_map import LossMap
from causalfusion.train.opening import OpenRun
from causalfusion.train.trainer import StepResult


class Reports:
    """Made when training begins; `show`: on the terminal, too."""

    def __init__(self, run: OpenRun, folder: Path, world: World, *, show: bool) -> None:
        self.run, self.world = run, world
        config, trainer = run.config, run.trainer
        seen = trainer.progress.images_seen
        self.peak = peak_rate(compute_dtype(config.train.precision), world.device)
        self.display = Display(config, world, seen, show=show, peak=self.peak)
        for line in beginning(folder, run.data, trainer.model, world, seen):
            self.display.say(line)
        self.clock = Clock()
        self.folder = folder
        self.log = None
        if world.is_main:
            self.log = RunLog(folder, seen, config.train.log_to, flat(to_dict(config)))

    @property
    def failed(self) -> bool:
        """A record could not be written."""
        return self.log is not None and bool(self.log.failure)

    def after_step(self, result: StepResult, batch_size: int, *, done: bool) -> None:
        """`batch_size`: images of this process; `done`: that was the last step."""
        train, trainer = self.run.config.train, self.run.trainer
        progress = trainer.progress
        needed = self._needed(result, batch_size) * self.world.size
        images = batch_size * self.world.size
        self.clock.add(images, needed)
        self.display.after_step(result, images, needed)
        if result.skipped:
            self.display.say(
                f"step {progress.train_step} skipped: loss {result.loss}, gradient norm {result.grad_norm}"
            )
        if progress.train_step % train.log_every == 0 or done:
            self._write_losses(result)
        left = max(60 * train.minutes - progress.seconds, 0) if train.minutes else math.inf
        self.display.show(progress.images_seen, seconds_left=left, force=done)

    def _needed(self, result: StepResult, batch_size: int) -> float:
        """The arithmetic that a step needs of this process: padding needs none."""
        model, copies = self.run.config.model, self.run.config.factorization.timesteps_per_ar_step
        if not result.splits:
            return train_step_flops(model, result.split, batch_size, copies, result.text_tokens).needed
        return sum(train_step_flops(model, split, 1, copies).needed for split in result.splits)

    def _write_losses(self, result: StepResult) -> None:
        """The means since the last record."""
        trainer, config = self.run.trainer, self.run.config
        losses = trainer.progress.pending_losses
        images_per_second, rate, waiting = self.clock.read()
        image, text = (sum(part) / max(len(losses), 1) for part in zip(*losses or [(nan, nan)], strict=True))
        parts = {}
        if self.run.data.tokenizer is not None and config.learns_text:
            parts = {"image_loss": image, "text_loss": text, "perplexity": math.exp(min(text, 100.0))}
        loss = image + config.text.loss_coefficient * text
        if trainer.progress.pending_alignment:
            found = trainer.progress.pending_alignment
            parts |= {"image_loss": image, "alignment": sum(found) / len(found)}
            loss += config.align.coefficient * parts["alignment"]
        trainer.progress = replace(trainer.progress, pending_losses=(), pending_alignment=())
        if self.log is None:
            return
        progress = trainer.progress
        record = {
            "train_step": progress.train_step,
            "loss": loss,
            **parts,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped_steps": progress.skipped_steps,
            "images_per_second": images_per_second,
            "flops_share": rate / (self.peak * self.world.size),
            "waiting_share": waiting,
        }
        self.log.write("train", progress.images_seen, record)

    def evaluation(self, found: LossMap) -> None:
        """The loss of held-out images, as numbers and as a chart."""
        if self.log is None:
            return
        seen, record = self.run.trainer.progress.images_seen, found.record()
        self.log.write("evaluation", seen, record)
        if self.log.shows_pictures and not self.log.failure and math.isfinite(found.mean):
            chart = self.folder / "loss_map.png"
            save_loss_map(record, chart)
            self.log.picture("loss_map", chart, seen)

    def accuracy(self, found: Accuracy) -> None:
        """Accuracy on held-out images."""
        self.display.say(f"accuracy: {found.in_words()}")
        if self.log is not None:
            self.log.write("accuracy", self.run.trainer.progress.images_seen, found.record())

    def samples(self, file: Path) -> None:
        """A grid of samples."""
        if self.log is not None:
            self.log.picture("samples", file, self.run.trainer.progress.images_seen)

    def close(self) -> None:
        self.display.line.close()
        if self.log is not None:
            self.log.close()

    def check(self) -> None:
        """Raises UserError where a record could not be written."""
        if self.log is not None and self.log.failure:
            raise UserError(
                f"{self.log.failure}; the run is saved at {self.run.trainer.progress.images_seen} images, "
                "without that record; free some space and run again"
            )
