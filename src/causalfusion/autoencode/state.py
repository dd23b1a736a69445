"""The state of a run that trains an autoencoder, its checkpoints, and the folder that it leaves.

`checkpoints/<images_seen>/` is an autoencoder's folder, with the averaged weights, that also holds the raw
weights and the training state. A checkpoint is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causalfusion.autoencode.build import build_codec
from causalfusion.codec.autoencoder import open_autoencoder, save_autoencoder
from causalfusion.codec.codec import Codec
from causalfusion.config.autoencoding import AutoencoderRun
from causalfusion.config.serialize import flat, read_object, to_dict
from causalfusion.errors import UserError
from causalfusion.files import temporary_name
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.checkpoint import (
    OPTIMIZER_FILE,
    REMEDY,
    Progress,
    commit,
    folder_of,
    not_written,
    partial_folder,
    read_progress,
    remove_oldest,
)
from causalfusion.train.ema import EMA
from causalfusion.train.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from causalfusion.train.soundness import check_tensors, first_not_finite
from causalfusion.weight_files import save_file

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_RAW_FILE, _RUN_FILE = "raw.safetensors", "run.json"
_KEPT = 2
_FREE = (
    "out",
    "data.path",
    "data.num_workers",
    "training.minutes",
    "training.images",
    "training.checkpoint_minutes",
    "training.picture_minutes",
    "training.log_every",
)
"""Settings that a resumed run may change; the data themselves are compared by their fingerprint."""


def begin_with(network: nn.Module, init: str) -> None:
    """Take over the weights of another autoencoder. Raises UserError if its network is another."""
    found = open_autoencoder(init).network.state_dict()
    try:
        check_tensors(found, network.state_dict(), init)
    except UserError as error:
        raise UserError(f"{error}; expected, for --init, a network of the same kind and sizes") from None
    network.load_state_dict(found)


class AutoencoderState:
    """The network, the average of its weights, the optimizer and the progress."""

    def __init__(self, run: AutoencoderRun, image_shape: tuple[int, int, int], device: torch.device) -> None:
        self.run, self.folder = run, Path(run.out)
        self.codec: Codec = build_codec(run.network, image_shape, run.training.seed).to(device)
        network: Any = self.codec.autoencoder
        self.network: Any = network
        assert isinstance(network, nn.Module)
        if run.training.init and not checkpoints_of(self.folder):
            begin_with(network, run.training.init)
        network.train()
        self.ema = EMA(network.named_parameters())
        self.optimizer = make_optimizer(network.parameters(), run.training.optimization())
        self.progress = Progress()

    def save(self, data: dict[str, Any]) -> None:
        """Write a checkpoint and remove older ones. Raises UserError if the state is not finite, or the disk
        is full; earlier checkpoints stay as they are."""
        name = self.not_finite()
        if name:
            raise UserError(f"training stopped: {name} is not finite, and nothing was saved; {self.remedy()}")
        final = folder_of(self.folder, self.progress)
        partial = partial_folder(final)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            (partial / "state").mkdir(parents=True)
            with self.ema.applied():
                save_autoencoder(self.network, partial)
            save_file(self.network.state_dict(), partial / _RAW_FILE)
            moments = optimizer_tensors(self.network, self.optimizer)
            save_file(moments, partial / "state" / OPTIMIZER_FILE)
            about = {"run": to_dict(self.run), "data": data}
            (partial / "state" / _RUN_FILE).write_text(json.dumps(about, indent=2))
            (partial / "state" / "progress.json").write_text(json.dumps(vars(self.progress)))
            commit(final)
        except (OSError, SafetensorError) as error:
            raise not_written(final, error) from error
        remove_oldest(self.folder, _KEPT)

    def resume(self, data: dict[str, Any]) -> bool:
        """Go on from the last checkpoint; False if there is none. Raises UserError if it is damaged, or of
        other settings or data."""
        found = checkpoints_of(self.folder)
        if not found:
            return False
        folder = found[-1]
        try:
            stored = read_object(folder / "state" / _RUN_FILE, "training state")
        except UserError as error:
            raise UserError(f"{error}; {REMEDY.format(folder)}") from error
        self._require_same(stored, data)
        try:
            progress = read_progress(folder)
            raw, averages = (self._read(folder / name) for name in (_RAW_FILE, WEIGHTS_FILE))
            self.network.load_state_dict(raw)
            self.ema.load_state_dict(averages)
            state = folder / "state"
            load_optimizer(self.network, self.optimizer, state / OPTIMIZER_FILE, state / "none", gaps=False)
        except UserError as error:
            raise UserError(f"{error}; {REMEDY.format(folder)}") from error
        self.progress = progress
        return True

    def _read(self, file: Path) -> dict[str, Tensor]:
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); it is damaged or cut short") from error
        check_tensors(tensors, self.network.state_dict(), str(file))
        return tensors

    def _require_same(self, stored: dict[str, Any], data: dict[str, Any]) -> None:
        """Raises UserError unless the run of a checkpoint has these settings and data."""
        before, now = stored.get("run"), flat(to_dict(self.run))
        if not isinstance(before, dict) or not isinstance(stored.get("data"), dict):
            raise UserError(f"{self.folder} holds a run that trains no autoencoder; give another --out")
        # Settings that came later did what their default does.
        before = {**flat(to_dict(AutoencoderRun(out=self.run.out))), **flat(before)}
        changed = [name for name in now if name not in _FREE and before.get(name) != now[name]]
        for name in changed:
            option = f"--{name.removeprefix('training.').removeprefix('network.')}".replace("_", "-")
            raise UserError(
                f"the run in {self.folder} has {option} {before.get(name)}, this run has {now[name]}; give "
                "the same, or another --out"
            )
        for name, value in data.items():
            if stored["data"].get(name) != value:
                raise UserError(
                    f"the data of the run in {self.folder} have {name} {stored['data'].get(name)}, this run "
                    f"has {value}; give the same data, or another --out"
                )

    def not_finite(self) -> str:
        """Name of a weight or an average that is not finite; empty where all are."""
        averages = {f"the average of {name}": value for name, value in self.ema.state_dict().items()}
        return first_not_finite([*self.network.state_dict().items(), *averages.items()])

    def remedy(self) -> str:
        found = checkpoints_of(self.folder)
        last = f"the last checkpoint, {found[-1]}, is whole" if found else "there is no checkpoint yet"
        return f"{last}; try a lower --lr in another --out, or check the data"

    def publish(self, mean: float, std: float) -> None:
        """Make the run's folder the autoencoder's: the averaged weights, and in its configuration the shift
        and scale that bring its latents, of this mean and deviation, to 0 and 1."""
        self.network.register_to_config(scaling_factor=1 / std, shift_factor=mean)
        temporary = temporary_name(self.folder / "autoencoder")
        try:
            with self.ema.applied():
                save_autoencoder(self.network, temporary)
            # A folder with a configuration is whole, and it is that of the weights beside it.
            (self.folder / "config.json").unlink(missing_ok=True)
            for name in (WEIGHTS_FILE, "config.json"):
                os.replace(temporary / name, self.folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def is_published(self) -> bool:
        """True if the run's folder is the autoencoder of its last checkpoint."""
        folders = (self.folder, *checkpoints_of(self.folder)[-1:])
        return (self.folder / "config.json").is_file() and filecmp.cmp(
            *(folder / WEIGHTS_FILE for folder in folders), shallow=False
        )

    def seen(self, images: int, seconds: float, losses: tuple[float, float]) -> None:
        """Note a train step."""
        progress = self.progress
        self.progress = replace(
            progress,
            images_seen=progress.images_seen + images,
            train_step=progress.train_step + 1,
            seconds=progress.seconds + seconds,
            pending_losses=(*progress.pending_losses, losses),
        )
