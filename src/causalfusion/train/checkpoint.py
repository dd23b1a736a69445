"""Checkpoints: atomic, pruned, exact.

`checkpoints/<images_seen>/` is a model folder (config.json, model.safetensors with the EMA weights,
raw.safetensors) with the training state beside it in `state/`. It is written under another name, flushed
to the disk and renamed: a folder of the right name is whole, whenever the process was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.errors import UserError
from causalfusion.saved import ModelSpec, checkpoints_of, load_strictly, load_weights, save_model
from causalfusion.train.ema import EMA

_HIDDEN = ".partial-"


@dataclass(frozen=True)
class Progress:
    """What a resumed run has to know beside its tensors."""

    images_seen: int = 0
    train_step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    pending_losses: tuple[tuple[float, float], ...] = ()
    """Image and text losses of the steps since the last log line."""


def save_checkpoint(
    run: Path,
    spec: ModelSpec,
    run_config: dict[str, Any],
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write one, then drop the oldest beyond `keep`. A failure leaves the earlier ones as they were."""
    final = run / "checkpoints" / f"{progress.images_seen:012d}"
    temporary = final.with_name(f"{_HIDDEN}{final.name}")
    try:
        for leftover in final.parent.glob(f"{_HIDDEN}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        save_model(temporary, spec, ema.state_dict(), raw=model.state_dict(), tokenizer=tokenizer)
        state = temporary / "state"
        state.mkdir()
        save_file(_optimizer_tensors(model, optimizer), state / "optimizer.safetensors")
        (state / "run.json").write_text(json.dumps(run_config, indent=2))
        (state / "progress.json").write_text(json.dumps(vars(progress)))
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        _discard(final)
        os.replace(temporary, final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = checkpoints_of(run)
        kept = f"the last checkpoint, {before[-1]}, is whole" if before else "there is no earlier checkpoint"
        raise UserError(
            f"checkpoint {final} could not be written ({error}); {kept}; free some space and run again"
        ) from error
    for old in checkpoints_of(run)[:-keep]:
        _discard(old)
    return final


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint so that no part of it ever stands under its name."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f"{_HIDDEN}old-{checkpoint.name}")
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights, EMA and optimizer back as they were."""
    load_strictly(model, load_weights(folder, "raw"), str(folder / "raw.safetensors"))
    ema.load_state_dict(load_weights(folder, "ema"))
    try:
        tensors = load_file(folder / "state" / "optimizer.safetensors")
        values = json.loads((folder / "state" / "progress.json").read_text())
        _restore_optimizer(model, optimizer, tensors)
        pending = tuple((image, text) for image, text in values["pending_losses"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"training state in {folder / 'state'} cannot be read ({error}); "
            "delete this checkpoint folder to resume from the one before"
        ) from error
    return Progress(**{**values, "pending_losses": pending})


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value).cpu().contiguous()
    return tensors


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    named = dict(model.named_parameters())
    for key, value in tensors.items():
        name, field = key.rsplit("/", 1)
        on_host = field == "step" and not optimizer.defaults.get("capturable") and not named[name].is_cuda
        optimizer.state[named[name]][field] = value if on_host else value.to(named[name].device)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
