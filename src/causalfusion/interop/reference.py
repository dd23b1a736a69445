"""Replaying tensors that were recorded from the reference implementation with our own code.

The format is that of `shared/parity/README.md`: for each model X a file X.weights.safetensors with the
official names, and any of X.train, X.infer, X.sample and X.loop; optionally also the noise schedules and the
autoencoder. All sizes are read from the files. Folders below it may hold recordings of other systems, in the
formats of `shared/parity/neighbours/*/README.md` (`systems/replay.py`).
"""

from __future__ import annotations

from pathlib import Path

from causalfusion.errors import UserError
from causalfusion.interop.recording import Check, replay_file
from causalfusion.interop.reference_autoencoder import replay_autoencoder
from causalfusion.interop.reference_generation import replay_inference, replay_sampling
from causalfusion.interop.reference_loop import replay_loop
from causalfusion.interop.reference_model import read_reference
from causalfusion.interop.reference_schedules import replay_schedules
from causalfusion.interop.reference_training import replay_training
from causalfusion.interop.systems.replay import is_own, recorded_folders, replay_system

_REPLAYS = {
    "train": replay_training,
    "infer": replay_inference,
    "sample": replay_sampling,
    "loop": replay_loop,
}


def replay_reference(folder: Path) -> list[Check]:
    """Replay everything recorded in the folder and below it, on the CPU in float32. Raises UserError if it
    cannot be read.

    A recorded tensor that the replay does not know, or an error that aborts it, is a failed check.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected a folder of recorded tensors")
    found = list(recorded_folders(folder))
    if not found:
        raise UserError(f"{folder} has no *.weights.safetensors; expected a folder of recorded tensors")
    checks: list[Check] = []
    for inside in found:
        name = "" if inside == folder else inside.relative_to(folder).as_posix()
        checks += _replay_own(inside, name) if is_own(inside) else replay_system(inside, name)
    return checks


def _replay_own(folder: Path, name: str) -> list[Check]:
    checks: list[Check] = []
    for path in sorted(folder.glob("*.weights.safetensors")):
        reference = read_reference(path)
        for kind, replay in _REPLAYS.items():
            part = path.with_name(path.name.replace(".weights.", f".{kind}."))
            if part.is_file():
                checks += replay_file(part, lambda recording, r=reference, f=replay: f(recording, r), name)
    if (folder / "schedules.safetensors").is_file():
        checks += replay_file(folder / "schedules.safetensors", replay_schedules, name)
    if (folder / "autoencoder" / "vae.safetensors").is_file():
        checks += replay_file(folder / "autoencoder" / "vae.safetensors", replay_autoencoder, name)
    return checks
