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
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import FinetuneConfig
from causalfusion.config.serialize import from_dict, read_object
from causalfusion.errors import UserError, check
from causalfusion.model.projector import is_of_classifier, is_of_projector
from causalfusion.saved.adapter import write_adapter
from causalfusion.saved.adapter_files import FOLDER as ADAPTER_FOLDER
from causalfusion.saved.folder import (
    CLASSIFIER_FILE,
    SAMPLING_FILE,
    ModelSpec,
    checkpoints_of,
    load_strictly,
    load_weights,
    save_model,
)
from causalfusion.saved.started import DATA_FILE
from causalfusion.train.ema import EMA
from causalfusion.train.ema_snapshots import WidthAverages
from causalfusion.train.optimizer import AnyOptimizer, load_optimizer
from causalfusion.train.sharding import shard_like
from causalfusion.train.soundness import check_tensors
from causalfusion.weight_files import read_weights, save_file

_HIDDEN = ".partial-"
OPTIMIZER_FILE, SHARDED_FOLDER = "optimizer.safetensors", "sharded"
WIDTHS_FILE, PROJECTOR_FILE = "ema_widths.safetensors", "projector.safetensors"
REMEDY = "delete the checkpoint {} to resume from the one before"


@dataclass(frozen=True)
class Progress:
    """Numbers that a resumed run needs beside its tensors."""

    images_seen: int = 0
    train_step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    """Training time so far, over all sittings; without evaluations, grids and checkpoints."""
    pending_losses: tuple[tuple[float, float], ...] = ()
    """Image and text losses of the steps since the last log line."""
    pending_alignment: tuple[float, ...] = ()
    """The same of the alignment, in a run with one."""

    @property
    def updates(self) -> int:
        """Train steps that changed the weights."""
        return self.train_step - self.skipped_steps

    def __post_init__(self) -> None:
        for name in ("images_seen", "train_step", "skipped_steps", "skipped_in_a_row", "seconds"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        possible = self.skipped_in_a_row <= self.skipped_steps <= self.train_step
        check(possible, "skipped_steps", self.skipped_steps, "at most train_step")


@dataclass(frozen=True)
class DataRecord:
    """Facts of a run's data, with which a resumed run compares its own."""

    class_names: list[str]
    images: int
    fingerprint: str
    """Fingerprint of the source, or of the cache's source."""
    autoencoder: str = ""
    """Hash of its weights; empty for pixels."""
    contents: str = ""
    """Hash of all that is read of it, of data of few images; else empty."""
    folder: str = ""
    """Where relative paths among the run's settings begin: the folder it was last started in. Empty: not
    known, in runs of earlier versions."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after a train step, as the main process writes it."""

    spec: ModelSpec
    run_config: dict[str, Any]
    progress: Progress
    tokenizer: Tokenizer | None
    data: DataRecord
    sampling: str = ""
    """The run's settings of generation, TOML: what its grids are drawn with."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, Tensor] = field(default_factory=dict)
    """Averages of several widths, where the run has some."""
    projector: dict[str, Tensor] = field(default_factory=dict)
    """Weights that are trained beside the model and no part of it."""
    optimizer: dict[str, Tensor] | None = None
    """None: every process writes its share."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """What the run trains of a model; an adapter is written beside the whole model."""


def folder_of(run: Path, progress: Progress) -> Path:
    """Where the checkpoint of this moment will lie."""
    return run / "checkpoints" / f"{progress.images_seen:012d}"


def partial_folder(final: Path) -> Path:
    """Where it is written until it is whole."""
    return final.with_name(f"{_HIDDEN}{final.name}")


def remove_partial_checkpoints(run: Path) -> None:
    """Remove what killed processes have left half written, or half removed. Only for the main process, which
    holds the run's folder."""
    for leftover in (run / "checkpoints").glob(f"{_HIDDEN}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_snapshot(final: Path, snapshot: Snapshot) -> None:
    """Everything but the shares, into the partial folder."""
    temporary = partial_folder(final)
    (ema, ema_head), (raw, raw_head) = (_parted(weights) for weights in (snapshot.ema, snapshot.raw))
    save_model(temporary, snapshot.spec, ema, raw=raw, tokenizer=snapshot.tokenizer)
    (temporary / SAMPLING_FILE).write_text(snapshot.sampling)
    if snapshot.finetune.trained != "none":
        write_adapter(temporary / ADAPTER_FOLDER, snapshot.finetune, snapshot.spec, snapshot.ema)
    state = temporary / "state"
    if snapshot.optimizer is not None:
        save_file(snapshot.optimizer, state / OPTIMIZER_FILE)
    if snapshot.widths:
        save_file(snapshot.widths, state / WIDTHS_FILE)
    if ema_head:
        # With the average, as the checkpoint's weights are; in its state, with the raw ones.
        save_file(ema_head, temporary / CLASSIFIER_FILE)
        save_file(raw_head, state / CLASSIFIER_FILE)
    if snapshot.projector:
        save_file(snapshot.projector, state / PROJECTOR_FILE)
    (state / "run.json").write_text(json.dumps(snapshot.run_config, indent=2))
    (state / "progress.json").write_text(json.dumps(vars(snapshot.progress)))
    (state / DATA_FILE).write_text(json.dumps(vars(snapshot.data), indent=2))


def commit(final: Path) -> None:
    """The partial folder is complete: give it its name."""
    temporary = partial_folder(final)
    for path in [*temporary.rglob("*"), temporary]:
        _flush(path)
    _discard(final)
    os.replace(temporary, final)
    _flush(final.parent)


def remove_oldest(run: Path, keep: int) -> None:
    """Remove the oldest checkpoints beyond `keep`."""
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


def read_progress(folder: Path) -> Progress:
    """How far a checkpoint's run is. Raises UserError, one line, for anything but what a save writes."""
    path = folder / "state" / "progress.json"
    values = read_object(path, "training state")
    for name in ("images_seen", "train_step", "skipped_steps", "skipped_in_a_row", "pending_losses"):
        if name not in values:
            raise UserError(f"training state: {path} lacks {name}")
    try:
        progress = from_dict(Progress, values)
    except UserError as error:
        raise UserError(f"training state: {path}: {error}") from None
    if f"{progress.images_seen:012d}" != folder.name:
        raise UserError(f"training state: {path} images_seen is {progress.images_seen}, not {folder.name}")
    return progress


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    ema: EMA,
    widths: WidthAverages,
    optimizer: AnyOptimizer,
    *,
    with_text: bool,
) -> Progress:
    """Put weights, EMA and optimizer back as they were; of a sharded model, this process's share of them.

    Raises UserError, one line that names the file and the tensor, for a state that is not whole.
    """
    state = folder / "state"
    try:
        progress = read_progress(folder)
        raw, averages = load_weights(folder, "raw"), load_weights(folder, "ema")
        raw |= _beside(model, is_of_projector, state / PROJECTOR_FILE)
        raw |= _beside(model, is_of_classifier, state / CLASSIFIER_FILE)
        averages |= _beside(model, is_of_classifier, folder / CLASSIFIER_FILE)
        check_tensors(raw, model.state_dict(), str(folder / "raw.safetensors"))
        check_tensors(averages, ema.state_dict(), str(folder / "model.safetensors"))
        of_widths = read_weights(state / WIDTHS_FILE) if widths.averages else {}
        check_tensors(of_widths, widths.state_dict(), str(state / WIDTHS_FILE))
        # Earlier versions wrote no state of parameters that no step had touched.
        earlier = not (state / DATA_FILE).is_file()
        gaps = earlier and (with_text or progress.train_step == progress.skipped_steps)
        load_optimizer(model, optimizer, state / OPTIMIZER_FILE, state / SHARDED_FOLDER, gaps=gaps)
    except UserError as error:
        raise UserError(f"{error}; {REMEDY.format(folder)}") from error
    except (OSError, SafetensorError, CheckpointException) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise UserError(
            f"training state in {state} cannot be read ({cause}); {REMEDY.format(folder)}"
        ) from error
    load_shares(model, raw, str(folder / "raw.safetensors"))
    ema.load_state_dict(averages)
    widths.load_state_dict(of_widths)
    return progress


def _parted(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights of the model itself, those of a classifier)."""
    head = {name: value for name, value in weights.items() if is_of_classifier(name)}
    return {name: value for name, value in weights.items() if name not in head}, head


def _beside(model: nn.Module, which: Callable[[str], bool], file: Path) -> dict[str, Tensor]:
    """The weights in a file of what a model has beside itself; none where it has not. Raises UserError for
    others."""
    expected = {name: value for name, value in model.state_dict().items() if which(name)}
    found = read_weights(file) if expected else {}
    check_tensors(found, expected, str(file))
    return found


def load_shares(
    model: nn.Module, weights: dict[str, Tensor], where: str, fresh: Collection[str] = ()
) -> None:
    """Load whole tensors, strictly, into a model that may be sharded; those in `fresh` keep their values."""
    layout = model.state_dict()
    shards = {k: shard_like(v, layout[k]) if k in layout else v for k, v in weights.items()}
    load_strictly(model, shards | {name: layout[name] for name in fresh}, where)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
