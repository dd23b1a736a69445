"""The state of a run: model, average, optimizer, progress; its checkpoints, written and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.serialize import to_dict, to_toml
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import autocast, compute_dtype
from causalfusion.model.learned import additions_of
from causalfusion.model.parts import is_hidden_matrix, is_of_text
from causalfusion.model.projector import is_beside, is_of_projector
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, checkpoints_of, load_spec, load_weights
from causalfusion.train.checkpoint import DataRecord, Progress, Snapshot, load_checkpoint, load_shares
from causalfusion.train.classification import layer_factor
from causalfusion.train.ema import EMA
from causalfusion.train.ema_snapshots import WidthAverages, write_ema_snapshot
from causalfusion.train.fine_tuning import for_grid, for_patches, freeze_rest
from causalfusion.train.graft import for_drawing, fresh_of
from causalfusion.train.new_rows import for_finetuning
from causalfusion.train.optimizer import make_optimizer, optimizer_tensors
from causalfusion.train.parallel import build_model
from causalfusion.train.saver import Saver
from causalfusion.train.sharding import gather, is_sharded, reshard
from causalfusion.train.soundness import first_not_finite

LOWER_RATE = (
    "a new run with a lower train.lr can begin from the weights of an earlier checkpoint (--train.init), or "
    "check the data"
)


class TrainState:
    """Everything that a checkpoint holds, on this process."""

    def __init__(self, config: RunConfig, world: World, tokenizer: Tokenizer | None = None) -> None:
        self.config, self.world, self.tokenizer = config, world, tokenizer
        self.model = build_model(config, world)
        self.sharded = is_sharded(self.model)
        self.learned_rows = freeze_rest(self.model, config)
        named = dict(self.model.named_parameters())
        saved = {name: value for name, value in named.items() if not is_of_projector(name)}
        self.ema = EMA(saved.items())
        self.widths = WidthAverages(saved.items(), config.train.ema_widths)
        of_text = {p for name, p in named.items() if is_of_text(name) and tokenizer is not None}
        hidden = {p for name, p in named.items() if is_hidden_matrix(name, p)}
        factors = _factors(named, config) if config.finetune.task == "classify" else None
        self.optimizer = make_optimizer(named.values(), config.train, of_text, hidden, factors)
        self.progress = Progress()
        self.saver: Saver | None = None

    @contextmanager
    def averaged_model(self) -> Iterator[Transformer]:
        """The model with the EMA weights, for evaluation and sample grids. A sharded one computes where all
        processes do, and in the precision of training: that is what its blocks are gathered in."""
        dtype = compute_dtype(self.config.train.precision) if self.sharded else torch.float32
        reshard(self.model)
        with self.ema.applied(), autocast(self.world.device, dtype):
            try:
                yield self.model.eval()
            finally:
                reshard(self.model)
                self.model.train()

    def save(self, spec: ModelSpec, data: DataRecord, run: Path) -> None:
        """A checkpoint, by all processes together; written by the time this returns, or in the background.

        While steps are being skipped, no earlier checkpoint is removed for it. Raises UserError, and writes
        nothing, where the state is not finite.
        """
        train, world = self.config.train, self.world
        name = self.first_not_finite_name()
        if world.any(bool(name)):
            raise UserError(
                f"training stopped at {self.progress.images_seen} images: {name or 'a weight'} is not "
                f"finite, nothing was saved, and {self.last_saved()}; {LOWER_RATE}"
            )
        background = train.async_checkpoint
        if self.saver is None:
            self.saver = Saver(
                run, world, keep=train.keep_checkpoints, background=background, sharded=self.sharded
            )
        state = optimizer_tensors(self.model, self.optimizer)
        raw = gather(self.model.state_dict(), world, copy=background)
        snapshot = Snapshot(
            replace(spec, images_seen=self.progress.images_seen),
            to_dict(self.config),
            self.progress,
            self.tokenizer,
            data,
            to_toml(self.config.sample),
            ema=gather(self.ema.state_dict(), world, copy=background),
            raw={name: value for name, value in raw.items() if not is_of_projector(name)},
            projector={name: value for name, value in raw.items() if is_of_projector(name)},
            widths=gather(self.widths.state_dict(), world, copy=background),
            optimizer=None if self.sharded else gather(state, world, copy=background),
            finetune=self.config.finetune,
        )
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

    def begin_with(self, folder: Path, class_names: Sequence[str] = ()) -> None:
        """Take over the weights that a model is used with: as the raw ones, and as their average. Learned
        positions of another grid are interpolated, layers of image tokens begin anew for patches of another
        size; a language model's weights are those of text. Where a model is fine-tuned, the rows of classes
        follow `class_names`, and a new word has one."""
        spec, config = load_spec(folder), self.config
        before = spec.model
        weights = {name: value.float() for name, value in load_weights(folder).items()}
        weights = for_grid(weights, before, config.model)
        fresh = frozenset(filter(is_beside, self.model.state_dict()))
        if before.text_only:
            weights, fresh = for_drawing(weights, config), fresh | fresh_of(self.model)
        elif spec.codec.patch_size != config.codec.patch_size:
            weights, of_patches = for_patches(weights, before, self.model)
            fresh |= of_patches
        if config.finetune.base:
            weights = for_finetuning(weights, config, class_names, self.tokenizer)
            fresh |= additions_of(self.model.state_dict()) - weights.keys()
        load_shares(self.model, weights, str(folder), fresh - weights.keys())
        self.ema.restart()

    def restore(self, checkpoint: Path) -> None:
        self.progress = load_checkpoint(
            checkpoint,
            self.model,
            self.ema,
            self.widths,
            self.optimizer,
            with_text=self.tokenizer is not None,
        )

    def save_ema_snapshot(self, run: Path) -> None:
        """Store the averages of several widths, by all processes together."""
        averages, progress = gather(self.widths.state_dict(), self.world, copy=False), self.progress
        if self.world.is_main and progress.updates:
            write_ema_snapshot(run, progress.images_seen, progress.updates, averages)

    def last_saved(self) -> str:
        """By all processes together."""
        self.finish_saving()
        before = checkpoints_of(Path(self.config.out))
        return f"the last checkpoint, {before[-1]}, is whole" if before else "there is no checkpoint yet"

    def first_not_finite_name(self) -> str:
        """Name of a weight, average or moment that is not finite on this process; empty where all are."""
        state = optimizer_tensors(self.model, self.optimizer)
        both = self.ema.state_dict() | self.widths.state_dict()
        averages = {f"the average of {name}": value for name, value in both.items()}
        return first_not_finite([*self.model.state_dict().items(), *averages.items(), *state.items()])


def _factors(named: dict[str, nn.Parameter], config: RunConfig) -> dict[nn.Parameter, float]:
    """Multiples of the learning rate in a classification, by layer."""
    model, decay = config.model, config.classify.layer_decay
    return {p: layer_factor(name, model.encoder.depth, model.depth, decay) for name, p in named.items()}
