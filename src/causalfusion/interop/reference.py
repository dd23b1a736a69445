"""Replaying tensors that were recorded from the reference implementation with our own code.

The format is that of `shared/parity/README.md`: for each model X a file X.weights.safetensors with the
official names, and any of X.train, X.infer, X.sample and X.loop; optionally also the noise schedules and the
autoencoder. All sizes are read from the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from causalfusion.errors import UserError
from causalfusion.interop.recording import Check, Recording
from causalfusion.interop.reference_autoencoder import replay_autoencoder
from causalfusion.interop.reference_generation import replay_inference, replay_sampling
from causalfusion.interop.reference_loop import replay_loop
from causalfusion.interop.reference_model import read_reference
from causalfusion.interop.reference_schedules import replay_schedules
from causalfusion.interop.reference_training import replay_training

_REPLAYS = {
    "train": replay_training,
    "infer": replay_inference,
    "sample": replay_sampling,
    "loop": replay_loop,
}


def replay_reference(folder: Path) -> list[Check]:
    """Replay everything recorded in the folder, on the CPU in float32. Raises UserError if it cannot be read.

    A recorded tensor that the replay does not know, or an error that aborts it, is a failed check.
    """
    weights = sorted(folder.glob("*.weights.safetensors"))
    if not weights:
        raise UserError(f"{folder} has no *.weights.safetensors; expected a folder of recorded tensors")
    checks: list[Check] = []
    for path in weights:
        reference = read_reference(path)
        for kind, replay in _REPLAYS.items():
            part = path.with_name(path.name.replace(".weights.", f".{kind}."))
            if part.is_file():
                checks += _replay(part, lambda recording, r=reference, f=replay: f(recording, r))
    if (folder / "schedules.safetensors").is_file():
        checks += _replay(folder / "schedules.safetensors", replay_schedules)
    if (folder / "autoencoder" / "vae.safetensors").is_file():
        checks += _replay(folder / "autoencoder" / "vae.safetensors", replay_autoencoder)
    return checks


def _replay(path: Path, replay: Callable[[Recording], None]) -> list[Check]:
    recording = Recording(path)
    try:
        replay(recording)
    except UserError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        # Inconsistent recorded shapes, or a defect of ours: neither may pass as success.
        reason = (str(error).splitlines() or [""])[0][:100]
        return [*recording.checks, Check(recording.name, f"broke off: {reason}", "not replayed", math.inf)]
    return recording.checks + recording.unknown()
