"""The training loop's body: draws -> documents -> errors -> gradients -> weights -> average.

A run is a function of its configuration. Everything random in train step k is derived from the seed and
from how many images were seen before, so that a run that was stopped, or killed, and started again by the
same command goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import autocast, compute_dtype
from causalfusion.rng import derive_seed
from causalfusion.train.arranged import Arranged
from causalfusion.train.batch import TokenBatch
from causalfusion.train.document_batch import IMAGES_OF_DOCUMENT
from causalfusion.train.ema import ema_decay
from causalfusion.train.objectives import make_objective
from causalfusion.train.optimizer import learning_rate, set_rate
from causalfusion.train.parallel import data_parallel, gradient_sync
from causalfusion.train.sharding import UnusedParameters, whole, zero_other_rows
from causalfusion.train.state import LOWER_RATE, TrainState


@dataclass(frozen=True)
class StepResult:
    """One train step, as the log sees it."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    split: list[int]
    """Sizes of the AR steps of the step's first image."""
    splits: tuple[list[int], ...] = ()
    """The same of each image of this process, where they have numbers of tokens of their own."""
    image_loss: float = 0.0
    text_loss: float = 0.0
    text_tokens: int = 0
    """Mean number of text tokens for each image."""
    alignment: float = 0.0
    """1 - cosine similarity with a frozen encoder's features; 0 without alignment."""


class Trainer(TrainState):
    """One train step after another."""

    def __init__(self, config: RunConfig, world: World, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, world, tokenizer)
        self.objective = make_objective(config, world, None if tokenizer is None else tokenizer.markers)
        self.aligned = bool(config.align.encoder)
        # Without an image in it, a batch leaves the image's parameters without a gradient.
        some_unused = tokenizer is not None and (config.text.text_only > 0 or config.data.has_documents)
        some_unused |= config.finetune.task != "generate"  # what predicts images learns nothing
        self.parallel: nn.Module = data_parallel(self.model, world, some_unused=some_unused)
        self.unused = UnusedParameters(self.model, world) if self.sharded and some_unused else None

    def step(self, batch: TokenBatch) -> StepResult:
        """Forward and backward over the micro-batches, clip, AdamW, EMA; or nothing, if not finite."""
        train, progress = self.config.train, self.progress
        draws = self.objective.draw(batch, seed=train.seed, split_index=progress.images_seen)
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(3, device=self.world.device)  # of images, of text, of the alignment
        size = len(batch.labels) // train.grad_accumulation
        parts = [slice(k * size, (k + 1) * size) for k in range(train.grad_accumulation)]
        pieces = [
            self.objective.arrange(batch.slice(rows), draws.slice(rows, batch.image_rows(rows)))
            for rows in parts
        ]
        totals, num_text = self._totals(pieces)
        # All of them before the first pass: a copy waits until a GPU has done the passes before it.
        pieces = [piece.to(self.world.device) for piece in pieces]
        with self._dropout():
            for k, piece in enumerate(pieces):
                with gradient_sync(self.parallel, k + 1 == len(pieces)):
                    part = self._losses(piece, totals, num_text)
                    self._total(part).backward()
                losses += part.detach()
        if self.unused is not None:
            self.unused.drop()
        for table, rows in self.learned_rows.items():
            if table.grad is not None:  # of zero, the optimizer leaves rows as they are to the bit
                zero_other_rows(table.grad, rows)
        losses = self.world.mean(losses)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        of_gradients = whole(nn.utils.clip_grad_norm_(parameters, train.max_grad_norm, foreach=True))
        of_gradients = of_gradients.to(losses)  # that of no gradients is on the CPU
        # Read together, after all that precedes the optimizer: a GPU is waited for but once.
        read = torch.stack([self._total(losses), of_gradients, *losses]).tolist()
        loss, norm, image_loss, text_loss, alignment = read
        rate = learning_rate(train, progress.images_seen, progress.seconds)
        # The norm is of gradients averaged over processes, so all of them decide alike.
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            set_rate(self.optimizer, rate)
            self.optimizer.step()
            self.ema.update(ema_decay(train, progress.updates))
            self.widths.update(progress.updates + 1)
        self.progress = replace(
            progress,
            images_seen=progress.images_seen + train.batch_size,
            train_step=progress.train_step + 1,
            skipped_steps=progress.skipped_steps + (not finite),
            skipped_in_a_row=0 if finite else progress.skipped_in_a_row + 1,
            pending_losses=progress.pending_losses + ((image_loss, text_loss),) * finite,
            pending_alignment=progress.pending_alignment + (alignment,) * (finite and self.aligned),
        )
        plan = draws.plan
        splits = () if plan.lengths is None else tuple(map(plan.step_sizes, range(len(plan.order))))
        text_tokens = batch.num_text // max(len(batch.tokens), 1)
        result = StepResult(
            loss, norm, rate, not finite, plan.step_sizes(0), splits, image_loss, text_loss, text_tokens,
            alignment,
        )  # fmt: skip
        if self.progress.skipped_in_a_row >= train.max_skipped_steps:
            raise UserError(self._not_finite(batch, result))
        return result

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Dropout on, where the model has some, its randomness a function of the seed, the train step and the
        process."""
        model, world = self.config.model, self.world
        if not (model.dropout or model.attention_dropout):
            yield
            return
        place = (self.config.train.seed, "dropout", self.progress.images_seen, world.rank)
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(*place))
            self.parallel.train()
            yield
        self.parallel.eval()

    def _totals(self, pieces: list[Arranged]) -> tuple[Tensor, int]:
        """(2,) images and text targets of the train step, per process on average: what its sums are divided
        by, so that each image and each text token of the step counts alike, wherever it is computed. And the
        text tokens of a row: where lengths are to be few, the same on all processes."""
        counts = [sum(p.num_images for p in pieces), sum(p.num_text_targets for p in pieces)]
        totals = torch.tensor(counts, dtype=torch.float32, device=self.world.device)
        if self.tokenizer is None:
            return totals, 0
        totals = self.world.mean(totals).clamp(min=1 / self.world.size)
        multiple = self.objective.length_multiple
        if multiple == 1:
            return totals, 0
        num_text = self.world.max(max(p.num_text for p in pieces))
        num_text += -num_text % multiple
        return totals, min(num_text, self.config.model.max_text_tokens)

    def _losses(self, piece: Arranged, totals: Tensor, num_text: int) -> Tensor:
        """(3,) this micro-batch's part of the train step's image loss, text loss and alignment."""
        with autocast(self.world.device, compute_dtype(self.config.train.precision)):
            errors = self.objective.errors(self.parallel, piece, num_text)
        image = self.objective.image_loss(errors.image, piece) / (totals[0] / max(piece.num_images, 1))
        text = errors.text.sum() / totals[1].clamp(min=1 / self.world.size)
        alignment = errors.alignment
        aligned = torch.zeros_like(text) if alignment is None else alignment.sum() / totals[0]
        return torch.stack([image, text, aligned])

    def _total(self, losses: Tensor) -> Tensor:
        """The image loss, plus the text loss and that of the alignment times their coefficients."""
        total = losses[0] + self.config.text.loss_coefficient * losses[1]
        return total + self.config.align.coefficient * losses[2] if self.aligned else total

    def _not_finite(self, batch: TokenBatch, result: StepResult) -> str:
        bad = (~torch.isfinite(batch.tokens).flatten(1).all(1)).nonzero().flatten().cpu()
        what, places = "samples", batch.sample_indices[bad].tolist()
        if batch.documents is not None:  # whose images are numbered one by one
            what, places = "documents", sorted({place // IMAGES_OF_DOCUMENT for place in places})
        inputs = f"input {what} {places[:8]}" if places else "no input"
        name = self.first_not_finite_name()
        blame = "these steps left the weights as they were"
        if name:
            blame = f"an earlier step made {name} not finite"
        return (
            f"training stopped: {self.progress.skipped_in_a_row} steps in a row were not finite, the last at "
            f"{self.progress.images_seen} images (loss {result.loss}, gradient norm {result.grad_norm}, "
            f"learning rate {result.learning_rate:g}, {len(result.split)} AR steps; {inputs} not finite); "
            f"{blame}, and {self.last_saved()}; {LOWER_RATE}"
        )
