"""`causalfusion train`: one run from its configuration to its last checkpoint."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from math import nan
from pathlib import Path

from causalfusion.config import RunConfig
from causalfusion.errors import STOPPED, TrainingStopped, UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import check_settings
from causalfusion.machine.processes import World, join_world
from causalfusion.machine.progress import tell
from causalfusion.machine.runtime import compute_dtype, measure_gemm_rate, tune_allocator
from causalfusion.model.arithmetic import train_step_flops
from causalfusion.saved.folder import ModelSpec, checkpoints_of, latest_model, load_spec, load_tokenizer
from causalfusion.train.clock import Clock
from causalfusion.train.display import Display, beginning
from causalfusion.train.feed import TrainingData, open_training_data
from causalfusion.train.grids import CAPTIONS, Interval, save_grid
from causalfusion.train.log import RunLog
from causalfusion.train.loss_map import loss_map
from causalfusion.train.parallel import fit_to_memory
from causalfusion.train.resume import check_same_run, facts_of, micro_batches_of, with_earlier_behaviour
from causalfusion.train.step import TokenBatch
from causalfusion.train.stopping import StopRequest, run_in_use
from causalfusion.train.trainer import StepResult, Trainer

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
    def __init__(self, config: RunConfig, world: World, show_progress: bool) -> None:
        if config.train.attention == "flex" and world.device.type == "cpu":
            raise UserError("train.attention is flex, which has no backward on the CPU; expected auto there")
        self.world, self.folder = world, Path(config.out)
        checkpoints = checkpoints_of(self.folder)
        # A run that has begun no longer needs what it began with.
        begins = bool(config.train.init) and not checkpoints
        begun_with = latest_model(Path(config.train.init)) if begins else None
        source = checkpoints[-1] if checkpoints else (begun_with if config.text.tokenizer else None)
        tokenizer = None if source is None else load_tokenizer(source, load_spec(source))
        if checkpoints:
            config = with_earlier_behaviour(config, checkpoints[-1])
        if checkpoints and config.codec.normalization == "measured":  # once, not again on every start
            codec = load_spec(checkpoints[-1]).codec
            normalization = replace(config.codec, normalization="given", scale=codec.scale, shift=codec.shift)
            config = replace(config, codec=normalization)
        self.data: TrainingData = open_training_data(config, world, tokenizer)
        self.config = self.data.config
        if checkpoints:
            self.facts = check_same_run(self.config, checkpoints[-1], self.data)
        else:
            self.facts = facts_of(self.data)
        if config.train.sample_every or config.train.sample_minutes:
            check_settings(self.config.sample, self.config.model, self.config.diffusion)
        begun = micro_batches_of(checkpoints[-1]) if checkpoints else 1
        self.config = fit_to_memory(self.config, world, at_least=begun)
        self.trainer = Trainer(self.config, world, self.data.tokenizer)
        if checkpoints:
            self.trainer.restore(checkpoints[-1])
        elif begun_with is not None:
            self.trainer.begin_with(begun_with)
        self.spec = ModelSpec(
            model=self.config.model, codec=self.config.codec, diffusion=self.config.diffusion,
            factorization=self.config.factorization, text=self.config.text,
            class_names=self.data.class_names, class_dropout=self.config.train.class_dropout,
            autoencoder_fingerprint=self.data.codec.autoencoder_fingerprint,
        )  # fmt: skip
        self.show = show_progress and world.is_main
        self.stop = StopRequest()
        self.over = False
        """The training time that was asked for is used up."""
        self.last_saved = self.trainer.progress.images_seen if checkpoints else -1
        self.save_due = False

    def go(self) -> Path:
        progress, train = self.trainer.progress, self.config.train
        self.over = train.minutes > 0 and progress.seconds >= 60 * train.minutes
        if not self.unfinished:
            if self.show:
                tell(self._finished())
            return checkpoints_of(self.folder)[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.peak = measure_gemm_rate(compute_dtype(train.precision), self.world.device)
        seen = progress.images_seen
        self.display = Display(self.config, self.world, seen, show=self.show, peak=self.peak)
        for line in beginning(self.folder, self.data, self.trainer.model, self.world, seen):
            self.display.say(line)
        self.clock = Clock()
        self.begun = time.monotonic()
        self.grids = Interval(train.sample_minutes, self.begun)
        self.checkpoints = Interval(train.checkpoint_minutes, self.begun)
        self.log = RunLog(self.folder, progress.images_seen) if self.world.is_main else None
        try:
            with self.stop.on_signals():
                self._steps()
        finally:
            self.trainer.close()
            self.display.line.close()
            if self.log is not None:
                self.log.close()
        if self.log is not None and self.log.failure:
            seen = self.trainer.progress.images_seen
            raise UserError(
                f"{self.log.failure}; the run is saved at {seen} images, without that record; free some "
                "space and run again"
            )
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
        trainer = self.trainer
        # Closed whatever happens: a traceback would keep its workers alive, and the exit waits for them.
        with closing(self.clock.timed(self.data.batches(trainer.progress.images_seen))) as feed:
            while self.unfinished:
                begin = time.monotonic()
                batch = next(feed)
                result = trainer.step(batch)
                seconds = trainer.progress.seconds + time.monotonic() - begin
                trainer.progress = replace(trainer.progress, seconds=seconds)
                wanted = self._wanted()
                self.over = bool(wanted & _OVER)
                self._after(batch, result, wanted)
                if wanted & _STOP and self.unfinished:
                    self._save(finish=True)
                    return
        self._evaluate()
        train = self.config.train
        if train.sample_every or (train.sample_minutes and time.monotonic() - self.begun > 60):
            self._sample()
        self._save(finish=True)

    @property
    def unfinished(self) -> bool:
        return self.trainer.progress.images_seen < self.config.train.images and not self.over

    def _wanted(self) -> int:
        """What time and signals ask for, alike on all processes: the main one's clock counts."""
        log_failed = self.log is not None and bool(self.log.failure)
        wanted = _STOP * (self.stop.requested or log_failed)
        if self.world.is_main:
            limit, seconds = self.config.train.minutes, self.trainer.progress.seconds
            wanted |= _OVER * (limit > 0 and seconds >= 60 * limit)
            wanted |= _GRID * self.grids.due() | _CHECKPOINT * self.checkpoints.due()
        return self.world.max(wanted)

    def _after(self, batch: TokenBatch, result: StepResult, wanted: int) -> None:
        train, progress = self.config.train, self.trainer.progress
        flops = train_step_flops(
            self.config.model, result.split, len(batch.labels), self._copies(), result.text_tokens
        )
        needed = flops.needed * self.world.size
        self.clock.add(train.batch_size, needed)
        self.display.after_step(result, train.batch_size, needed)
        done = not self.unfinished
        if result.skipped:
            loss, norm = result.loss, result.grad_norm
            self.display.say(f"step {progress.train_step} skipped: loss {loss}, gradient norm {norm}")
        if progress.train_step % train.log_every == 0 or done:
            self._log(result)
        left = max(60 * train.minutes - progress.seconds, 0) if train.minutes else math.inf
        self.display.show(progress.images_seen, seconds_left=left, force=done)
        if done:
            return
        with self.clock.paused(), self.display.clock.paused():
            self._between_steps(progress.train_step, wanted)

    def _between_steps(self, step: int, wanted: int) -> None:
        train = self.config.train
        if _due(step, train.evaluate_every):
            self._evaluate()
        if _due(step, train.sample_every) or wanted & _GRID:
            self._sample()
        self.save_due |= _due(step, train.checkpoint_every) or bool(wanted & _CHECKPOINT)
        if self.save_due and not self.trainer.progress.skipped_in_a_row:  # later, if the run recovers
            self._save()

    def _log(self, result: StepResult) -> None:
        losses = self.trainer.progress.pending_losses
        self.trainer.progress = replace(self.trainer.progress, pending_losses=())
        images_per_second, rate, waiting = self.clock.read()
        image, text = (sum(part) / max(len(losses), 1) for part in zip(*losses or [(nan, nan)], strict=True))
        loss = image + self.config.text.loss_coefficient * text
        parts = {}
        if self.data.tokenizer is not None:
            parts = {"image_loss": image, "text_loss": text, "perplexity": math.exp(min(text, 100.0))}
        share = rate / (self.peak * self.world.size)
        progress = self.trainer.progress
        if self.log is not None:
            self.log.write(
                "train", progress.images_seen,
                {
                    "train_step": progress.train_step, "loss": loss, **parts, "grad_norm": result.grad_norm,
                    "learning_rate": result.learning_rate, "skipped_steps": progress.skipped_steps,
                    "images_per_second": images_per_second, "flops_share": share, "waiting_share": waiting,
                },
            )  # fmt: skip

    def _evaluate(self) -> None:
        """The loss map of the EMA weights, by the main process alone, or by all of a sharded model."""
        if self._takes_part and self.config.train.evaluate_every:
            batch_size = min(self.config.train.batch_size, 128)
            with self.trainer.averaged_model() as model:
                result = loss_map(
                    model, self.trainer.process, self.config, self.data.evaluation_batches(batch_size),
                    self.trainer.markers,
                )  # fmt: skip
            if self.log is not None:
                self.log.write("evaluation", self.trainer.progress.images_seen, result.record())
        self.world.barrier()

    def _sample(self) -> None:
        """A grid of samples of the EMA weights."""
        begin = time.monotonic()
        if self._takes_part:
            file = self.folder / "samples" / f"{self.trainer.progress.images_seen:012d}.png"
            captions = self.data.held_out_captions(CAPTIONS)
            with self.trainer.averaged_model() as model:
                pipeline = Pipeline(
                    model, self.data.codec, self.spec, self.trainer.process, tokenizer=self.data.tokenizer
                )
                save_grid(pipeline, self.config.sample, captions, file if self.world.is_main else None)
            self.display.say(f"samples: {file}")
        self.grids.done(begin)
        self.world.barrier()

    @property
    def _takes_part(self) -> bool:
        """Whether this process computes where only the main one is needed: a sharded model needs all."""
        return self.world.is_main or self.trainer.sharded

    def _save(self, *, finish: bool = False) -> None:
        begin = time.monotonic()
        if self.trainer.progress.images_seen != self.last_saved:
            self.trainer.save(self.spec, self.facts, self.folder)
            self.save_due = False
            self.last_saved = self.trainer.progress.images_seen
        if finish:
            self.trainer.finish_saving()
        self.checkpoints.done(begin)

    def _copies(self) -> int:
        return self.config.factorization.timesteps_per_ar_step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
