"""Checkpoints: atomic, pruned, exact.

`checkpoints/<images_seen>/` is a model folder (config.json, model.safetensors with the EMA weights,
raw.safetensors) with the training state beside it in `state/`. It is written under another name, flushed
to the disk and renamed: a folder of the right name is whole, whenever a process was killed.

The weights are always whole tensors, written by the main process. The optimizer's are
`state/optimizer.safetensors`, or, of a sharded run, `state/sharded/`, where each process writes its share.
Either can be read by any number of processes, sharded or not.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.errors import UserError
from causalfusion.saved import (
    SAMPLING_FILE,
    ModelSpec,
    checkpoints_of,
    load_strictly,
    load_weights,
    save_model,
)
from causalfusion.train.ema import EMA
from causalfusion.train.optimizer import load_optimizer
from causalfusion.train.sharding import share

_HIDDEN = ".partial-"
OPTIMIZER_FILE, SHARDED_FOLDER = "optimizer.safetensors", "sharded"


@dataclass(frozen=True)
class Progress:
    """What a resumed run has to know beside its tensors."""

    images_seen: int = 0
    train_step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    """Training time so far, over all sittings; without evaluations, grids and checkpoints."""
    pending_losses: tuple[tuple[float, float], ...] = ()
    """Image and text losses of the steps since the last log line."""


@dataclass(frozen=True)
class Snapshot:
    """What the main process writes of a run, as it stands after a train step."""

    spec: ModelSpec
    run_config: dict[str, Any]
    progress: Progress
    tokenizer: Tokenizer | None
    sampling: str = ""
    """The run's settings of generation, TOML: what its grids are drawn with."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] | None = None
    """None: every process writes its share."""


def folder_of(run: Path, progress: Progress) -> Path:
    """Where the checkpoint of this moment will lie."""
    return run / "checkpoints" / f"{progress.images_seen:012d}"


def partial_folder(final: Path) -> Path:
    """Where it is written until it is whole."""
    return final.with_name(f"{_HIDDEN}{final.name}")


def remove_leftovers(final: Path) -> None:
    """What processes that were killed have left half written."""
    for leftover in final.parent.glob(f"{_HIDDEN}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_snapshot(final: Path, snapshot: Snapshot) -> None:
    """Everything but the shares, into the partial folder."""
    temporary = partial_folder(final)
    save_model(temporary, snapshot.spec, snapshot.ema, raw=snapshot.raw, tokenizer=snapshot.tokenizer)
    (temporary / SAMPLING_FILE).write_text(snapshot.sampling)
    state = temporary / "state"
    if snapshot.optimizer is not None:
        save_file(snapshot.optimizer, state / OPTIMIZER_FILE)
    (state / "run.json").write_text(json.dumps(snapshot.run_config, indent=2))
    (state / "progress.json").write_text(json.dumps(vars(snapshot.progress)))


def commit(final: Path) -> None:
    """The partial folder is complete: give it its name."""
    temporary = partial_folder(final)
    for path in [*temporary.rglob("*"), temporary]:
        _flush(path)
    _discard(final)
    os.replace(temporary, final)
    _flush(final.parent)


def prune(run: Path, keep: int) -> None:
    """Drop the oldest checkpoints beyond `keep`."""
    for old in checkpoints_of(run)[:-keep]:
        _discard(old)


def not_written(final: Path, error: BaseException) -> UserError:
    """Clean up after a failure, which leaves the earlier checkpoints as they were, and say so."""
    shutil.rmtree(partial_folder(final), ignore_errors=True)
    before = checkpoints_of(final.parents[1])
    kept = f"the last checkpoint, {before[-1]}, is whole" if before else "there is no earlier checkpoint"
    return UserError(
        f"checkpoint {final} could not be written ({error}); {kept}; free some space and run again"
    )


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint so that no part of it ever stands under its name."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f"{_HIDDEN}old-{checkpoint.name}")
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights, EMA and optimizer back as they were; of a sharded model, this process's share of them."""
    load_shares(model, load_weights(folder, "raw"), str(folder / "raw.safetensors"))
    ema.load_state_dict(load_weights(folder, "ema"))
    state = folder / "state"
    try:
        values = json.loads((state / "progress.json").read_text())
        load_optimizer(model, optimizer, state / OPTIMIZER_FILE, state / SHARDED_FOLDER)
        pending = tuple((image, text) for image, text in values["pending_losses"])
        return Progress(**{**values, "pending_losses": pending})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"training state in {state} cannot be read ({error}); "
            "delete this checkpoint folder to resume from the one before"
        ) from error


def load_shares(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load whole tensors, strictly, into a model that may be sharded."""
    layout = model.state_dict()
    load_strictly(model, {k: share(v, layout[k]) if k in layout else v for k, v in weights.items()}, where)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
