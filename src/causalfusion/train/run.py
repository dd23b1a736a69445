"""`causalfusion train`: one run from its configuration to its last checkpoint."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from math import nan
from pathlib import Path

from causalfusion.arithmetic import train_step_flops
from causalfusion.config import RunConfig
from causalfusion.distributed import World, join_world
from causalfusion.errors import STOPPED, TrainingStopped, UserError
from causalfusion.estimate.show import announce
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import check_settings
from causalfusion.model.transformer import count_parameters
from causalfusion.pictures import to_image_grid
from causalfusion.progress import ProgressLine
from causalfusion.runtime import compute_dtype, measure_gemm_rate, tune_allocator
from causalfusion.saved import ModelSpec, checkpoints_of, latest_model, load_spec, load_tokenizer
from causalfusion.train.feed import TrainingData, open_training_data
from causalfusion.train.log import RunLog
from causalfusion.train.loss_map import loss_map
from causalfusion.train.resume import check_same_run
from causalfusion.train.step import TokenBatch
from causalfusion.train.stopping import StopRequest, run_in_use
from causalfusion.train.trainer import Clock, StepResult, Trainer


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
        raise TrainingStopped(config.out, run.trainer.progress.images_seen, config.train.images)
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
        if checkpoints and config.codec.normalization == "measured":  # once, not again on every start
            codec = load_spec(checkpoints[-1]).codec
            normalization = replace(config.codec, normalization="given", scale=codec.scale, shift=codec.shift)
            config = replace(config, codec=normalization)
        self.data: TrainingData = open_training_data(config, world, tokenizer)
        self.config = self.data.config
        if checkpoints:
            check_same_run(self.config, checkpoints[-1])
        if config.train.sample_every:
            check_settings(self.config.sample, self.config.model, self.config.diffusion)
        self.trainer = Trainer(self.config, world, self.data.tokenizer)
        if checkpoints:
            self.trainer.restore(checkpoints[-1])
        elif begun_with is not None:
            self.trainer.begin_with(begun_with)
        self.spec = ModelSpec(
            model=self.config.model, codec=self.config.codec, diffusion=self.config.diffusion,
            factorization=self.config.factorization, text=self.config.text,
            class_names=self.data.class_names, class_dropout=self.config.train.class_dropout,
        )  # fmt: skip
        self.show = show_progress and world.is_main
        self.stop = StopRequest()
        self.last_saved = self.trainer.progress.images_seen if checkpoints else -1

    def go(self) -> Path:
        progress, total = self.trainer.progress, self.config.train.images
        if progress.images_seen >= total:
            self._say(
                f"{self.folder} is finished, {progress.images_seen} images; raise train.images to go on"
            )
            return checkpoints_of(self.folder)[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.peak = measure_gemm_rate(compute_dtype(self.config.train.precision), self.world.device)
        self._announce()
        self.clock = Clock()
        self.line = ProgressLine(total, progress.images_seen, enabled=self.show)
        self.log = RunLog(self.folder, progress.images_seen) if self.world.is_main else None
        try:
            with self.stop.on_signals():
                self._steps()
        finally:
            self.trainer.close()
            self.line.close()
            if self.log is not None:
                self.log.close()
        return checkpoints_of(self.folder)[-1]

    def _steps(self) -> None:
        trainer = self.trainer
        # Closed whatever happens: a traceback would keep its workers alive, and the exit waits for them.
        with closing(self.clock.timed(self.data.batches(trainer.progress.images_seen))) as feed:
            while self.unfinished:
                batch = next(feed)
                self._after(batch, trainer.step(batch))
                if self.world.any(self.stop.requested) and self.unfinished:
                    self._save(finish=True)
                    return
        self._evaluate()
        self._sample()
        self._save(finish=True)

    @property
    def unfinished(self) -> bool:
        return self.trainer.progress.images_seen < self.config.train.images

    def _after(self, batch: TokenBatch, result: StepResult) -> None:
        train, step = self.config.train, self.trainer.progress.train_step
        flops = train_step_flops(
            self.config.model, result.split, len(batch.labels), self._copies(), result.text_tokens
        )
        self.clock.add(train.batch_size, flops.needed * self.world.size)
        done = self.trainer.progress.images_seen >= train.images
        if result.skipped:
            self._say(f"step {step} skipped: loss {result.loss}, gradient norm {result.grad_norm}")
        if step % train.log_every == 0 or done:
            self._log(result)
        if done:
            return
        with self.clock.paused():
            self._between_steps(step)

    def _between_steps(self, step: int) -> None:
        train = self.config.train
        if _due(step, train.evaluate_every):
            self._evaluate()
        if _due(step, train.sample_every):
            self._sample()
        if _due(step, train.checkpoint_every):
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
        shown = f"loss {loss:.4f}"
        if parts:
            shown = f"image {image:.4f}  text {text:.3f}"
        shown += f"  {images_per_second:.0f} images/s  {share:.0%} of the arithmetic"
        self.line.show(progress.images_seen, shown, force=progress.images_seen >= self.config.train.images)

    def _evaluate(self) -> None:
        """The loss map of the EMA weights, by the main process alone, or by all of a sharded model."""
        if self._takes_part and self.config.train.evaluate_every:
            batch_size = min(self.config.train.batch_size, 128)
            with self.trainer.averaged_model() as model:
                result = loss_map(
                    model, self.trainer.schedule, self.config, self.data.evaluation_batches(batch_size),
                    self.trainer.markers,
                )  # fmt: skip
            if self.log is not None:
                self.log.write("evaluation", self.trainer.progress.images_seen, result.record())
        self.world.barrier()

    def _sample(self) -> None:
        if self._takes_part and self.config.train.sample_every:
            names = self.data.class_names[:16]
            columns = max(len(names), 1)
            with self.trainer.averaged_model() as model:
                pipeline = Pipeline(model, self.data.codec, self.spec, self.trainer.schedule)
                images = pipeline.generate([i % columns for i in range(4 * columns)], self.config.sample)
            if self.world.is_main:
                folder = self.folder / "samples"
                folder.mkdir(exist_ok=True)
                scale = max(1, 96 // images.shape[-1])
                grid = to_image_grid(images, columns, scale=scale, column_labels=names or None)
                grid.save(folder / f"{self.trainer.progress.images_seen:012d}.png")
        self.world.barrier()

    @property
    def _takes_part(self) -> bool:
        """Whether this process computes where only the main one is needed: a sharded model needs all."""
        return self.world.is_main or self.trainer.sharded

    def _save(self, *, finish: bool = False) -> None:
        if self.trainer.progress.images_seen != self.last_saved:
            self.trainer.save(self.spec, self.folder)
            self.last_saved = self.trainer.progress.images_seen
        if finish:
            self.trainer.finish_saving()

    def _announce(self) -> None:
        config, count = self.config, count_parameters(self.trainer.model)
        self._say(
            f"{self.folder}: {count:,} parameters, {config.model.num_tokens} tokens of "
            f"{config.model.token_dim}, {len(self.data.train_indices):,} training images and "
            f"{len(self.data.held_out):,} held out, {config.model.num_classes} classes, "
            f"{self.world.size} process(es) on {self.world.device}"
        )
        seen = self.trainer.progress.images_seen
        for line in announce(
            config, self.world.size, self.world.device, images_seen=seen, gemm_rate=self.peak
        ):
            self._say(line)
        if seen:
            self._say(f"going on from {seen} images")

    def _say(self, text: str) -> None:
        if self.show:
            self.line.close() if hasattr(self, "line") else None
            print(text, flush=True)

    def _copies(self) -> int:
        return self.config.factorization.timesteps_per_ar_step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
