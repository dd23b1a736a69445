"""The training loop: feed -> draws -> loss -> gradients -> weights -> EMA, with everything that surrounds it.

A run is a function of its configuration. Everything random in train step k is derived from the seed and
from how many images were seen before, so that a run that was stopped, or killed, and started again by the
same command goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.serialize import to_dict, to_toml
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import autocast, compute_dtype
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, checkpoints_of, load_weights
from causalfusion.train.checkpoint import DataRecord, Progress, Snapshot, load_checkpoint, load_shares
from causalfusion.train.ema import EMA, ema_decay
from causalfusion.train.optimizer import learning_rate, make_optimizer, optimizer_tensors
from causalfusion.train.parallel import build_model, data_parallel, gradient_sync
from causalfusion.train.saver import Saver
from causalfusion.train.sharding import UnusedParameters, gather, is_sharded, let_go, whole
from causalfusion.train.soundness import first_not_finite
from causalfusion.train.step import Arranged, Objective, TokenBatch

_LOWER_RATE = (
    "a new run with a lower train.lr can begin from the weights of an earlier checkpoint (--train.init), or "
    "check the data"
)


@dataclass(frozen=True)
class StepResult:
    """One train step, as the log sees it."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    split: list[int]
    """Sizes of the AR steps of the step's first image."""
    image_loss: float = 0.0
    text_loss: float = 0.0
    text_tokens: int = 0
    """Of a sequence, on average."""


class Trainer:
    """The state of a run, and one train step."""

    def __init__(self, config: RunConfig, world: World, tokenizer: Tokenizer | None = None) -> None:
        self.config, self.world, self.tokenizer = config, world, tokenizer
        self.markers = None if tokenizer is None else tokenizer.markers
        self.process = make_process(config.diffusion)
        self.model = build_model(config, world)
        self.sharded = is_sharded(self.model)
        self.ema = EMA(self.model.named_parameters())
        self.optimizer = make_optimizer(self.model.parameters(), config.train)
        # Without an image in it, a batch leaves the image's parameters without a gradient.
        some_unused = tokenizer is not None and config.text.text_only > 0
        self.parallel: nn.Module = data_parallel(self.model, world, some_unused=some_unused)
        self.unused = UnusedParameters(self.model, world) if self.sharded and some_unused else None
        self.length_multiple = config.train.length_multiple or (64 if world.device.type == "cuda" else 1)
        self.objective = Objective(config, self.process, self.markers, self.length_multiple)
        self.saver: Saver | None = None
        self.progress = Progress()

    # --- one step -------------------------------------------------------------------------------------

    def step(self, batch: TokenBatch) -> StepResult:
        """Forward and backward over the micro-batches, clip, AdamW, EMA; or nothing, if not finite."""
        train, progress = self.config.train, self.progress
        draws = self.objective.draw(batch, seed=train.seed, split_index=progress.images_seen)
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(2, device=self.world.device)  # of images and of text
        size = batch.tokens.shape[0] // train.grad_accumulation
        parts = [slice(k * size, (k + 1) * size) for k in range(train.grad_accumulation)]
        pieces = [self.objective.arrange(batch.slice(rows), draws.slice(rows)) for rows in parts]
        totals, num_text = self._totals(pieces)
        for k, piece in enumerate(pieces):
            with gradient_sync(self.parallel, k + 1 == len(pieces)):
                part = self._losses(piece, totals, num_text)
                self._total(part).backward()
            losses += part.detach()
        if self.unused is not None:
            self.unused.drop()
        losses = self.world.mean(losses)
        loss = float(self._total(losses))
        image_loss, text_loss = losses.tolist()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(whole(nn.utils.clip_grad_norm_(parameters, train.max_grad_norm, foreach=True)))
        rate = learning_rate(train, progress.images_seen)
        # The norm is of gradients averaged over processes, so all of them decide alike.
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.ema.update(ema_decay(train, progress.train_step - progress.skipped_steps))
        self.progress = replace(
            progress,
            images_seen=progress.images_seen + train.batch_size,
            train_step=progress.train_step + 1,
            skipped_steps=progress.skipped_steps + (not finite),
            skipped_in_a_row=0 if finite else progress.skipped_in_a_row + 1,
            pending_losses=progress.pending_losses + ((image_loss, text_loss),) * finite,
        )
        split = torch.bincount(draws.plan.ar_step[0])[1:].tolist()
        captions = batch.captions or ()
        text_tokens = sum(len(c) + 4 for c in captions) // max(len(captions), 1)
        result = StepResult(loss, norm, rate, not finite, split, image_loss, text_loss, text_tokens)
        if self.progress.skipped_in_a_row >= train.max_skipped_steps:
            raise UserError(self._not_finite(batch, result))
        return result

    def _totals(self, pieces: list[Arranged]) -> tuple[Tensor, int]:
        """(2,) images and text targets of the train step, per process on average: what its sums are divided
        by, so that each image and each text token of the step counts alike, wherever it is computed. And the
        text tokens of a row: where lengths are to be few, the same on all processes."""
        counts = [sum(p.num_images for p in pieces), sum(p.num_text_targets for p in pieces)]
        totals = torch.tensor(counts, dtype=torch.float32, device=self.world.device)
        if self.markers is None:
            return totals, 0
        totals = self.world.mean(totals).clamp(min=1 / self.world.size)
        if self.length_multiple == 1:
            return totals, 0
        num_text = self.world.max(max(p.num_text for p in pieces))
        num_text += -num_text % self.length_multiple
        return totals, min(num_text, self.config.model.max_text_tokens)

    def _losses(self, piece: Arranged, totals: Tensor, num_text: int) -> Tensor:
        """(2,) this micro-batch's part of the train step's image loss and text loss."""
        piece = piece.to(self.world.device)
        with autocast(self.world.device, compute_dtype(self.config.train.precision)):
            errors = self.objective.errors(self.parallel, piece, num_text)
        image = self.objective.image_loss(errors.image, piece) / (totals[0] / max(piece.num_images, 1))
        text = errors.text.sum() / totals[1].clamp(min=1 / self.world.size)
        return torch.stack([image, text])

    def _total(self, losses: Tensor) -> Tensor:
        """The image loss plus the text loss times its coefficient."""
        return losses[0] + self.config.text.loss_coefficient * losses[1]

    def _not_finite(self, batch: TokenBatch, result: StepResult) -> str:
        bad = (~torch.isfinite(batch.tokens).flatten(1).all(1)).nonzero().flatten().cpu()
        inputs = f"input samples {batch.sample_indices[bad].tolist()[:8]}" if len(bad) else "no input"
        name = self._first_not_finite()
        blame = "these steps left the weights as they were"
        if name:
            blame = f"an earlier step made {name} not finite"
        return (
            f"training stopped: {self.progress.skipped_in_a_row} steps in a row were not finite, the last at "
            f"{self.progress.images_seen} images (loss {result.loss}, gradient norm {result.grad_norm}, "
            f"learning rate {result.learning_rate:g}, {len(result.split)} AR steps; {inputs} not finite); "
            f"{blame}, and {self._last_saved()}; {_LOWER_RATE}"
        )

    def _last_saved(self) -> str:
        """By all processes together."""
        self.finish_saving()
        before = checkpoints_of(Path(self.config.out))
        return f"the last checkpoint, {before[-1]}, is whole" if before else "there is no checkpoint yet"

    def _first_not_finite(self) -> str:
        """Name of a weight, average or moment that is not finite on this process; empty where all are."""
        state = optimizer_tensors(self.model, self.optimizer)
        averages = {f"the average of {name}": value for name, value in self.ema.state_dict().items()}
        return first_not_finite([*self.model.state_dict().items(), *averages.items(), *state.items()])

    # --- weights --------------------------------------------------------------------------------------

    @contextmanager
    def averaged_model(self) -> Iterator[Transformer]:
        """The model with the EMA weights, for evaluation and sample grids. A sharded one computes where all
        processes do, and in the precision of training: that is what its blocks are gathered in."""
        dtype = compute_dtype(self.config.train.precision) if self.sharded else torch.float32
        let_go(self.model)
        with self.ema.applied(), autocast(self.world.device, dtype):
            try:
                yield self.model.eval()
            finally:
                let_go(self.model)
                self.model.train()

    def save(self, spec: ModelSpec, data: DataRecord, run: Path) -> None:
        """A checkpoint, by all processes together; written by the time this returns, or in the background.

        While steps are being skipped, no earlier checkpoint is removed for it. Raises UserError, and writes
        nothing, where the state is not finite.
        """
        train, world = self.config.train, self.world
        name = self._first_not_finite()
        if world.any(bool(name)):
            raise UserError(
                f"training stopped at {self.progress.images_seen} images: {name or 'a weight'} is not "
                f"finite, nothing was saved, and {self._last_saved()}; {_LOWER_RATE}"
            )
        background = train.async_checkpoint
        if self.saver is None:
            self.saver = Saver(
                run, world, keep=train.keep_checkpoints, background=background, sharded=self.sharded
            )
        state = optimizer_tensors(self.model, self.optimizer)
        snapshot = Snapshot(
            replace(spec, images_seen=self.progress.images_seen), to_dict(self.config), self.progress,
            self.tokenizer, data, to_toml(self.config.sample),
            ema=gather(self.ema.state_dict(), world, copy=background),
            raw=gather(self.model.state_dict(), world, copy=background),
            optimizer=None if self.sharded else gather(state, world, copy=background),
        )  # fmt: skip
        healthy = not self.progress.skipped_in_a_row
        self.saver.save(snapshot, state if self.sharded else {}, prune=healthy)

    def finish_saving(self) -> None:
        """Wait for a checkpoint that is being written."""
        if self.saver is not None:
            self.saver.finish()

    def close(self) -> None:
        """The last call, also after a failure."""
        if self.saver is not None:
            self.saver.close()

    def begin_with(self, folder: Path) -> None:
        """Take over the weights that a model is used with: as the raw ones, and as their average."""
        weights = {name: value.float() for name, value in load_weights(folder).items()}
        load_shares(self.model, weights, str(folder))
        self.ema.load_state_dict(weights)

    def restore(self, checkpoint: Path) -> None:
        self.progress = load_checkpoint(
            checkpoint, self.model, self.ema, self.optimizer, with_text=self.tokenizer is not None
        )
