"""Replaying what other systems' released code recorded (shared/parity/neighbours), with our own code.

The format is that of the README beside each recording: for a model X the file X.weights.safetensors, with the
names of its authors, and others that hold what their code made of it. The system is recognised by the names
of the weights; sizes, steps and scales are read from the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from causalfusion.interop.language.replay import replay_language
from causalfusion.interop.official_file import parse_json, read_safetensors, tensor_names
from causalfusion.interop.recording import Check, Recording, replay_file
from causalfusion.interop.systems import (
    replay_dit,
    replay_fit,
    replay_fit_sample,
    replay_latentlm,
    replay_latentlm_sample,
    replay_mar,
    replay_mar_sample,
    replay_rope,
    replay_sit,
)
from causalfusion.interop.systems.dit import read_dit, read_sit
from causalfusion.interop.systems.fit import read_fit
from causalfusion.interop.systems.large_dit import read_large_dit
from causalfusion.interop.systems.latentlm import read_latentlm
from causalfusion.interop.systems.latentlm_autoencoder import replay_fixed_variance
from causalfusion.interop.systems.mar import read_mar
from causalfusion.interop.systems.released import Released
from causalfusion.interop.systems.replay_model import RecordedSystem

_OWN_KEY = "x_proj.weight"
"""A weight that models of this project's reference have."""
_LANGUAGE_MODEL = "io.safetensors"

Reader = Callable[[Mapping[str, Tensor], Mapping[str, Any], str], Released]
Replay = Callable[[Recording, RecordedSystem], None]


class System(NamedTuple):
    """How the recordings of a system are read and replayed."""

    read: Reader
    parts: Mapping[str, Replay]
    """By what stands between X. and .safetensors."""
    tolerances: Mapping[str, float]
    schedules: Replay | None = None
    """Replay of schedules.safetensors, which all models of a folder share."""


_DDPM = {
    "forward": replay_dit.replay_forward,
    "train": replay_dit.replay_train,
    "sample": replay_dit.replay_sample,
}
DIT = System(read_dit, _DDPM, replay_dit.TOLERANCES)
SIT = System(
    read_sit,
    {
        "forward": replay_dit.replay_forward,
        "train": replay_sit.replay_train,
        "sample": replay_sit.replay_sample,
    },
    replay_sit.TOLERANCES,
)
FIT = System(
    read_fit,
    {
        "forward": replay_fit.replay_forward,
        "rope": replay_rope.replay_rope,
        "train": replay_fit.replay_train,
        "sample": replay_fit_sample.replay_sample,
    },
    replay_fit.TOLERANCES,
)
MAR = System(
    read_mar,
    {
        "train": replay_mar.replay_train,
        "head": replay_mar.replay_head,
        "sample": replay_mar_sample.replay_sample,
    },
    replay_mar.TOLERANCES,
    schedules=replay_mar.replay_schedules,
)
LATENTLM = System(
    read_latentlm,
    {
        "train": replay_latentlm.replay_train,
        "sample": replay_latentlm_sample.replay_sample,
        "vae": lambda recording, _: replay_fixed_variance(recording),
    },
    replay_latentlm.TOLERANCES,
    schedules=replay_latentlm.replay_schedules,
)
LATENTLM_BASELINE = System(
    read_latentlm,
    {
        "dit_train": replay_latentlm.replay_train,
        "dit_sample": replay_latentlm_sample.replay_baseline_sample,
    },
    replay_latentlm.TOLERANCES,
)
LARGE_DIT = System(read_large_dit, _DDPM, replay_dit.TOLERANCES)


def recorded_folders(folder: Path) -> Iterator[Path]:
    """The folder and those below it that hold recordings."""
    if any(folder.glob("*weights.safetensors")) or _is_language_models(folder):
        yield folder
    if not _is_language_models(folder):
        for inside in sorted(folder.iterdir()):
            if inside.is_dir() and not inside.name.startswith("."):
                yield from recorded_folders(inside)


def _is_language_models(folder: Path) -> bool:
    """True for a recorded language model, or a folder that holds nothing but such folders."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    return (folder / _LANGUAGE_MODEL).is_file() or (
        bool(inside) and all((path / _LANGUAGE_MODEL).is_file() for path in inside)
    )


def is_own(folder: Path) -> bool:
    """True if the folder's recordings are of this project's reference; unknown ones count as such."""
    return not _is_language_models(folder) and all(
        _system_of(path) is None for path in sorted(folder.glob("*weights.safetensors"))
    )


def replay_system(folder: Path, name: str) -> list[Check]:
    """Replay the recordings of other systems in a folder, called `name` in the report. Raises UserError."""
    if _is_language_models(folder):
        return replay_language(folder, name)
    checks: list[Check] = []
    unknown = {path.name for path in folder.glob("*.safetensors")}
    schedules = folder / "schedules.safetensors"
    for path in sorted(folder.glob("*weights.safetensors")):
        system = _system_of(path)
        if system is None:
            continue
        recorded = _read(path, system)
        parts = {_beside(path, part): replay for part, replay in system.parts.items()}
        if system.schedules is not None and schedules.name in unknown:
            parts[schedules] = system.schedules
        for file, replay in parts.items():
            if file.name in unknown:
                checks += replay_file(file, lambda r, f=replay, s=recorded: f(r, s), name, system.tolerances)
        unknown -= {path.name, *(file.name for file in parts)}
    for file in sorted(unknown):
        note = "the whole file, which is of no known kind"
        checks.append(Check(_title(folder / file, name), note, "not replayed", math.inf))
    return checks


def _read(path: Path, system: System) -> RecordedSystem:
    state, metadata = read_safetensors(path)
    settings: dict[str, Any] = {}
    for key in ("config", "diffusion"):
        settings |= parse_json(metadata.get(key, "{}"), f"{path}: metadata {key}")
    where = str(path)
    return RecordedSystem(system.read(state, settings, where), state, where, settings)


def _title(path: Path, folder: str) -> str:
    """A file's name in the report."""
    name = path.name.removesuffix(".safetensors")
    return f"{folder}/{name}" if folder else name


def _system_of(path: Path) -> System | None:
    """The system whose names the weights have; None: none that is known."""
    names = tensor_names(path)
    if _OWN_KEY in names:
        return None
    if "layers.0.attention.wq.weight" in names:
        return LARGE_DIT
    if "condition_layer.linear.weight" in names:
        return LATENTLM
    if "blocks.0.mlp.gate.weight" in names:
        return LATENTLM_BASELINE
    if "diffloss.net.input_proj.weight" in names:
        return MAR
    if "blocks.0.mlp.fc1_g.weight" in names:
        return FIT
    if "x_embedder.proj.weight" in names and "blocks.0.mlp.fc2.weight" in names:
        return SIT if _tells_time_from_noise(path) else DIT
    return None


def _tells_time_from_noise(weights: Path) -> bool:
    """True if recordings of a network with DiT's names are of a flow, which no weight tells."""
    for part, tensor in (("train", "case0/x1"), ("sample", "ode/times")):
        path = _beside(weights, part)
        if path.is_file():
            return tensor in tensor_names(path)
    path = _beside(weights, "forward")
    if not path.is_file() or "t" not in tensor_names(path):
        return False
    with safe_open(path, "pt") as file:
        return file.get_tensor("t").is_floating_point()


def _beside(weights: Path, part: str) -> Path:
    return weights.with_name(f"{weights.name.split('.')[0]}.{part}.safetensors")
