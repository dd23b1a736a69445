"""Averages of several widths beside the ordinary one, and their snapshots on disk.

`RUN/ema_snapshots/<images_seen>.safetensors` holds the averages of all widths at that moment, as
`width/parameter`, of the parameters that are trained. They are kept in float32 and stored in float16, whose
rounding is 2.1e-4 of the weights; that of bfloat16 is eight times as much (`python -m benchmarks.averages`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from causalfusion.errors import UserError
from causalfusion.files import remove_leftovers, write_whole
from causalfusion.train.ema import EMA
from causalfusion.train.post_hoc import decay_of
from causalfusion.train.sharding import shard_like

FOLDER = "ema_snapshots"
ROUNDING = 2.1e-4
"""Of float16, relative to the norm of weights."""
_ABOUT = "about"
"""The entry of a file's metadata with its moment, as JSON."""
REMEDY = "delete it to go without it"


class WidthAverages:
    """An average of the weights for each of some relative widths; none without widths."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], widths: Sequence[float]) -> None:
        named = list(named_parameters)
        self.averages = {width: EMA(named) for width in widths}

    def update(self, updates: int) -> None:
        """After the update of the weights that is their number `updates`, 1 for the first."""
        for width, average in self.averages.items():
            average.update(decay_of(width, updates))

    def state_dict(self) -> dict[str, Tensor]:
        """By `width/parameter`, of the parameters that are trained; sharded as they are."""
        return {
            key_of(width, name): average.averages[name]
            for width, average in self.averages.items()
            for name in average.parameters
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for key, average in self.state_dict().items():
            average.copy_(shard_like(state[key], average))


def key_of(width: float, name: str) -> str:
    return f"{width!r}/{name}"


def write_ema_snapshot(run: Path, images_seen: int, updates: int, averages: Mapping[str, Tensor]) -> None:
    """Store whole averages atomically. Raises UserError where that fails."""
    tensors = {key: _in_half(value) for key, value in averages.items()}
    about = {"images_seen": images_seen, "updates": updates}
    # One entry: several are written in no certain order, and a snapshot is to be the same to the bit.
    content = save(tensors, {_ABOUT: json.dumps(about)})
    file = run / FOLDER / f"{images_seen:012d}.safetensors"
    try:
        write_whole(file, content)
    except OSError as error:
        raise UserError(
            f"EMA snapshot {file} could not be written ({error.strerror or error}); free some space and run "
            "again"
        ) from error


def _in_half(value: Tensor) -> Tensor:
    half = value.half()
    return half if bool(torch.isfinite(half).all()) else value


def remove_later_snapshots(run: Path, images_seen: int) -> None:
    """Remove those that a killed run took after its last checkpoint; it takes them again."""
    remove_leftovers(run / FOLDER)
    for file in _files(run):
        if int(file.stem) > images_seen:
            file.unlink()


def _files(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted(p for p in (run / FOLDER).glob("*.safetensors") if p.stem.isdigit())


@dataclass(frozen=True)
class EMASnapshot:
    """A file of averages."""

    file: Path
    images_seen: int
    updates: int
    """Updates of the weights until then."""
    shapes: dict[str, tuple[int, ...]]
    """Of the averages, by `width/parameter`."""

    @property
    def widths(self) -> list[float]:
        return sorted({float(key.partition("/")[0]) for key in self.shapes})

    @property
    def parameters(self) -> set[str]:
        return {key.partition("/")[2] for key in self.shapes}


def read_snapshots(run: Path) -> list[EMASnapshot]:
    """The snapshots of a run, oldest first. Raises UserError if there are none, or one is damaged."""
    files = _files(run)
    if not files:
        raise UserError(
            f"{run} has no EMA snapshots ({run / FOLDER}); a run takes them if it begins with "
            "--train.ema-widths 0.05 0.1 --train.ema-snapshot-images N"
        )
    return [_read(file) for file in files]


def _read(file: Path) -> EMASnapshot:
    try:
        with safe_open(file, framework="pt") as opened:
            about, shapes = json.loads((opened.metadata() or {})[_ABOUT]), {}
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                shapes[key] = tuple(opened.get_slice(key).get_shape())
        snapshot = EMASnapshot(file, int(about["images_seen"]), int(about["updates"]), shapes)
        sound = snapshot.updates >= 1 and all(width > 0 for width in snapshot.widths)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"EMA snapshot {file} cannot be read ({error}); {REMEDY}") from error
    if not sound or not shapes:
        raise UserError(f"EMA snapshot {file} holds no averages; {REMEDY}")
    return snapshot
