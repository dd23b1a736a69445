"""`causalfusion ema`: models with averages of any width from a run's EMA snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from causalfusion.config.training import check_width
from causalfusion.errors import UserError
from causalfusion.saved.folder import checkpoints_of, read_latest
from causalfusion.saved.whole import WholeModel, read_whole, write_model
from causalfusion.train.ema_snapshots import REMEDY, ROUNDING, EMASnapshot, key_of, read_snapshots
from causalfusion.train.post_hoc import Profile, combine


@dataclass(frozen=True)
class Reconstructed:
    """A model that was written."""

    folder: Path
    width: float
    images_seen: int
    num_snapshots: int
    distance: float
    """How far the profile of the sum is from that of the width, relative to its norm."""
    rounding: float
    """The share of float16's rounding in the weights, relative to their norm."""


def reconstruct(run: Path, widths: Sequence[float], out: Path) -> list[Reconstructed]:
    """Write the model with the average of each width, at the time of the last snapshot: into `out`, or, of
    several, into folders in it named by their widths. Raises UserError."""
    for width in widths:
        check_width(width, "--width")
    if len(set(widths)) != len(widths) or not widths:
        raise UserError(f"--width is {' '.join(map(str, widths))}; expected one or more different widths")
    snapshots = read_snapshots(run)
    if not checkpoints_of(run):
        raise UserError(f"{run} has no checkpoint; expected a run with one, whose settings the model has")
    if run.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} is inside of the run; give another folder")
    stored, checkpoint = read_latest(run, read_whole)
    model = replace(stored, weights={name: value.float() for name, value in stored.weights.items()})
    _check_fit(snapshots, model.weights, checkpoint)
    folders = [out] if len(widths) == 1 else [out / f"{width:g}" for width in widths]
    return [
        _write(run, snapshots, model, width, folder) for width, folder in zip(widths, folders, strict=True)
    ]


def _check_fit(snapshots: list[EMASnapshot], weights: dict[str, Tensor], checkpoint: Path) -> None:
    """Raises UserError for a snapshot of other parameters than the model's, or than the last snapshot's."""
    names = snapshots[-1].parameters
    for snapshot in snapshots:
        expected = {
            key_of(width, name): tuple(weights[name].shape)
            for width in snapshot.widths
            for name in names & weights.keys()
        }
        if snapshot.shapes != expected:
            raise UserError(f"EMA snapshot {snapshot.file} does not fit the model {checkpoint}; {REMEDY}")


def _write(
    run: Path, snapshots: list[EMASnapshot], model: WholeModel, width: float, out: Path
) -> Reconstructed:
    last = snapshots[-1]
    stored = [(snapshot, width) for snapshot in snapshots for width in snapshot.widths]
    profiles = [Profile(width, snapshot.updates) for snapshot, width in stored]
    coefficients, distance = combine(profiles, Profile(width, last.updates))
    # Those that are not trained have no averages.
    weights = model.weights | _sums(stored, coefficients, sorted(last.parameters))
    origin = f"average of relative width {width:g} of {run}"
    spec = replace(model.spec, images_seen=last.images_seen, origin=origin)
    write_model(out, replace(model, spec=spec, weights=weights))
    rounding = ROUNDING * float(np.linalg.norm(coefficients))
    return Reconstructed(out, width, last.images_seen, len(snapshots), distance, rounding)


def _sums(
    stored: list[tuple[EMASnapshot, float]], coefficients: np.ndarray, names: list[str]
) -> dict[str, Tensor]:
    """The sums of the stored averages, float32, one parameter after another. Raises UserError for values that
    are not finite."""
    sums = {}
    with ExitStack() as stack:
        files = {
            s.file: stack.enter_context(safe_open(s.file, framework="pt"))
            for s in {s.file: s for s, _ in stored}.values()
        }
        for name in names:
            total = torch.zeros(())
            for (snapshot, width), coefficient in zip(stored, coefficients.tolist(), strict=True):
                total = total + coefficient * files[snapshot.file].get_tensor(key_of(width, name)).double()
            if not bool(torch.isfinite(total).all()):
                raise UserError(f"the EMA snapshots in {stored[0][0].file.parent} of {name} are not finite")
            sums[name] = total.float()
    return sums
