"""`causalfusion codec train`: a run from its settings to an autoencoder's folder."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from causalfusion.autoencode.objective import Objective
from causalfusion.autoencode.perceptual import open_perceptual
from causalfusion.autoencode.state import AutoencoderState
from causalfusion.codec.codec import measure_statistics
from causalfusion.config.autoencoding import AutoencoderRun
from causalfusion.data import open_source
from causalfusion.data.folder import require_elsewhere
from causalfusion.data.loader import Batch, Loader, load_indices, split_holdout
from causalfusion.data.sizes import check_one_size
from causalfusion.data.source import spread
from causalfusion.errors import TrainingStopped, UserError
from causalfusion.files import in_use, remove_leftovers, write_whole
from causalfusion.machine.processes import require_one_process
from causalfusion.machine.progress import ProgressLine, tell
from causalfusion.machine.runtime import select_device, tune_allocator
from causalfusion.pictures.compose import framed, to_image_grid
from causalfusion.rng import derive_generator
from causalfusion.train.checkpoint import remove_partial_checkpoints
from causalfusion.train.ema import ema_decay
from causalfusion.train.grids import Periodic
from causalfusion.train.log import RunLog
from causalfusion.train.optimizer import learning_rate
from causalfusion.train.stopping import StopRequest

PICTURE_IMAGES = 10
STATISTICS_IMAGES = 2048
"""Largest number of training images, evenly spread, that the latents' mean and deviation are measured on."""
_CHUNK = 64


def train_autoencoder(run: AutoencoderRun, *, device: str = "auto", show_progress: bool = True) -> Path:
    """Train, or go on from the run's last checkpoint; returns the autoencoder's folder.

    Raises TrainingStopped if a signal ended the run early; all is saved then. Raises UserError.
    """
    require_one_process("codec train")
    if run.data.cache:
        raise UserError(
            f"data.cache is {run.data.cache!r}; an autoencoder is trained on images: leave it out"
        )
    tune_allocator()
    folder = Path(run.out)
    require_elsewhere(folder, run.data)
    with in_use(folder, "the run"):
        remove_leftovers(folder)
        remove_partial_checkpoints(folder)
        work = _Run(run, select_device(device), show_progress)
        finished = work.go()
    if not finished:
        raise TrainingStopped(run.out, work.state.progress.images_seen, work.optimization.images)
    return folder


class _Run:
    """The loop: a train step, and what is due between two of them."""

    def __init__(self, run: AutoencoderRun, device: torch.device, show_progress: bool) -> None:
        run = replace(run, network=run.network.complete())
        self.run, self.training, self.folder, self.show = run, run.training, Path(run.out), show_progress
        self.optimization = run.training.optimization()
        self.device = device
        check_one_size(run.data)
        self.source = open_source(run.data)
        self.train_indices, self.held_out = split_holdout(len(self.source), run.data.holdout)
        first = load_indices(self.source, np.arange(1), run.data).images
        channels, height, width = first.shape[1:]
        perceptual = open_perceptual(self.training.perceptual, device) if self.training.perceptual else None
        self.objective = Objective(run.network, self.training, perceptual)
        self.state = AutoencoderState(run, (channels, height, width), device)
        self.data = {"images": len(self.source), "fingerprint": self.source.fingerprint()}
        self.resumed = self.state.resume(self.data)
        self.stop = StopRequest()

    @property
    def over(self) -> bool:
        """The images or the minutes that were asked for are used up."""
        progress, config = self.state.progress, self.optimization
        by_time = config.minutes > 0 and progress.seconds >= 60 * config.minutes
        return by_time or progress.images_seen >= config.images

    def go(self) -> bool:
        """True if the run is finished; False if a signal ended it."""
        state = self.state
        if self.over:
            if not state.is_published():  # a stop came between the last checkpoint and this
                self._publish()
            self._say(
                f"{self.folder} is finished: {state.progress.images_seen:,} images, "
                f"{state.progress.seconds / 60:.1f} minutes; larger --minutes or --images go on"
            )
            return True
        self._say(self._beginning())
        self.log = RunLog(self.folder, state.progress.images_seen)
        self.line = ProgressLine(self.optimization.images, state.progress.images_seen, enabled=self.show)
        begin = time.monotonic()
        self.checkpoints = Periodic(self.training.checkpoint_minutes, begin)
        self.pictures = Periodic(self.training.picture_minutes, begin)
        try:
            with self.stop.on_signals():
                self._steps()
        finally:
            self.line.close()
            self.log.close()
        if self.log.failure:
            raise UserError(f"{self.log.failure}; the run is saved in {self.folder}")
        if self.over:
            self._publish()
        return self.over

    def _beginning(self) -> str:
        network, latent = self.state.network, "x".join(map(str, self.state.codec.latent_shape))
        config = self.state.codec.config
        size = f"{config.image_channels}x{config.image_height}x{config.image_width}"
        count = sum(parameter.numel() for parameter in network.parameters())
        seen = self.state.progress.images_seen
        data = f"{len(self.train_indices):,} training images and {len(self.held_out):,} held out"
        return (
            f"{self.folder}: {count:,} parameters, images {size}, latents {latent}, {data}, on {self.device}"
            + (f"; going on from {seen:,} images" if self.resumed else "")
        )

    def _steps(self) -> None:
        state = self.state
        # Closed whatever happens: a traceback would keep its workers alive, and the exit waits for them.
        with closing(self._batches()) as batches:
            while not self.over:
                begin = time.monotonic()
                figures = self._step(next(batches), begin)
                self._report(figures)
                if self.over or self.stop.requested:
                    break
                if self.pictures.due():
                    self._picture()
                if self.checkpoints.due():
                    begin = time.monotonic()
                    state.save(self.data)
                    self.checkpoints.done(begin)
        self._picture()
        state.save(self.data)

    def _batches(self) -> Generator[Batch]:
        loader = Loader(
            self.source,
            self.run.data,
            seed=self.training.seed,
            batch_size=self.training.batch_size,
            indices=self.train_indices,
            flip=self.run.data.flip,
        )
        yield from loader.iterate(self.state.progress.images_seen)

    def _step(self, batch: Batch, begin: float) -> dict[str, float]:
        """Forward, backward, clip, AdamW, average. Raises UserError, and changes nothing, if the loss or the
        gradient is not finite."""
        state, config = self.state, self.optimization
        images = self._checked(batch).to(self.device)
        losses = self.objective(state.codec, images, self._noise(batch))
        state.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = float(nn.utils.clip_grad_norm_(state.network.parameters(), config.max_grad_norm, foreach=True))
        total = float(losses.total.detach())
        if not (math.isfinite(norm) and math.isfinite(total)):
            raise UserError(
                f"training stopped at {state.progress.images_seen} images: the loss is {total}, the norm of "
                f"its gradient {norm}; {state.remedy()}"
            )
        rate = learning_rate(config, state.progress.images_seen, state.progress.seconds)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.ema.update(ema_decay(config, state.progress.train_step))
        pair = (float(losses.reconstruction.detach()), float(losses.kl.detach()))
        state.seen(len(images), time.monotonic() - begin, pair)
        figures = {"loss": total, "grad_norm": norm, "learning_rate": rate}
        return (
            figures
            if losses.perceptual is None
            else figures | {"perceptual": float(losses.perceptual.detach())}
        )

    def _checked(self, batch: Batch) -> Tensor:
        config = self.state.codec.config
        expected = (config.image_channels, config.image_height, config.image_width)
        if batch.images.shape[1:] != expected:
            raise UserError(
                f"images are {tuple(batch.images.shape[1:])} (channels, height, width), the first one is "
                f"{expected}; expected one size: give --data.image-size"
            )
        return batch.images

    def _noise(self, batch: Batch) -> Tensor:
        """Noise for the latents, by place in the stream of images, (B, c, h, w)."""
        codec, seed = self.state.codec, self.training.seed
        places = batch.sample_indices.tolist()
        draws = [codec.draw_noise(derive_generator(seed, "latent", place)) for place in places]
        return torch.stack(draws).to(self.device)

    def _report(self, figures: dict[str, float]) -> None:
        progress = self.state.progress
        pending = progress.pending_losses
        if progress.train_step % self.training.log_every and not self.over:
            return
        reconstruction, kl = (sum(values) / len(pending) for values in zip(*pending, strict=True))
        self.state.progress = replace(progress, pending_losses=())
        record = {"reconstruction": reconstruction, "kl": kl, "seconds": progress.seconds, **figures}
        self.log.write("train", progress.images_seen, record)
        left = 60 * self.training.minutes - progress.seconds if self.training.minutes else math.inf
        text = f"reconstruction {reconstruction:.4f}  kl {kl:.3f}"
        if "perceptual" in figures:
            text += f"  perceptual {figures['perceptual']:.4f}"
        self.line.show(progress.images_seen, text, limit=max(left, 0), force=self.over)

    @torch.no_grad()
    def _picture(self) -> None:
        """Held-out images above their reconstructions, by the averaged weights."""
        begin, state = time.monotonic(), self.state
        chosen = (self.held_out if len(self.held_out) else self.train_indices)[:PICTURE_IMAGES]
        images = load_indices(self.source, chosen, self.run.data).images.to(self.device)
        with state.ema.applied():
            decoded = state.codec.decode(state.codec.encode(images, None))
        both = torch.cat([images, decoded]).cpu()
        scale = max(1, 96 // images.shape[-1])
        grid = to_image_grid(both, len(images), scale=scale, row_labels=["image", "reconstruction"])
        file = self.folder / "reconstructions" / f"{state.progress.images_seen:012d}.png"
        write_whole(file, lambda stream: framed(grid, 8).save(stream, "PNG"))
        error = float((decoded - images).square().mean())
        self.log.write("reconstruction", state.progress.images_seen, {"squared_error": error})
        self.pictures.done(begin)

    def _publish(self) -> None:
        """Measure the latents, write the autoencoder, and say how to use it."""
        state = self.state
        chosen = spread(self.train_indices, STATISTICS_IMAGES)
        parts = (chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK))
        with state.ema.applied():
            mean, std = measure_statistics(
                state.codec, (load_indices(self.source, part, self.run.data).images for part in parts)
            )
        state.publish(mean, std)
        self._say(f"raw latents: mean {mean:.6g}, standard deviation {std:.6g}")
        self._say(
            f"train on its latents with: --codec.autoencoder {shlex.quote(str(self.folder))} --codec.shift "
            f"{mean:.6g} --codec.scale {1 / std:.6g}"
        )

    def _say(self, text: str) -> None:
        if self.show:
            tell(text)
