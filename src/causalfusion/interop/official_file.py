"""Reading a released checkpoint from disk without executing any code in it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.weight_files import read_pickle

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to every name."""
_STATES = {"ema": "ema", "model_ema": "ema", "model": "model"}
"""Names under which checkpoints hold state dicts, and what these are."""


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """The content of a checkpoint. At least one of `ema` and `model` is there; a bare state dict is
    `model`."""

    ema: dict[str, Tensor] | None
    model: dict[str, Tensor] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The options of its training (`args`), or the constructor arguments in a recording."""
    train_steps: int = 0

    @property
    def states(self) -> list[dict[str, Tensor]]:
        """The state dicts that are there, the EMA first."""
        return [state for state in (self.ema, self.model) if state is not None]

    def require_finite(self, where: Path) -> None:
        """Raises UserError for the first weight that is not finite."""
        for state in self.states:
            for key, value in state.items():
                if not bool(torch.isfinite(value).all()):
                    raise UserError(
                        f"{where}: weight {key} holds values that are not finite; it cannot be used"
                    )


def read_official(path: Path) -> OfficialFile:
    """Weights and settings of a .pt or .safetensors file. Raises UserError for anything but a checkpoint."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a checkpoint as its authors released it")
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        constructor: dict[str, Any] = {}
        for key in ("config", "diffusion"):
            constructor |= parse_json(metadata.get(key, "{}"), f"{path}: metadata {key}")
        return OfficialFile(ema=None, model=_state_dict(tensors, str(path)), settings=constructor)
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a checkpoint or a state dict")
    nested = {kind: content[name] for name, kind in _STATES.items() if isinstance(content.get(name), dict)}
    if not nested:
        return OfficialFile(ema=None, model=_state_dict(content, str(path)))
    states = {name: _state_dict(state, f"{path}: {name}") for name, state in nested.items()}
    args, train_steps = content.get("args"), content.get("train_steps")
    settings = vars(args) if isinstance(args, argparse.Namespace) else args
    return OfficialFile(
        ema=states.get("ema"),
        model=states.get("model"),
        settings=settings if isinstance(settings, dict) else {},
        train_steps=train_steps if isinstance(train_steps, int) else 0,
    )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(all tensors, metadata) of a file. Raises UserError."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors of a file, which are not read. Raises UserError."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error


def parse_json(text: str, where: str) -> dict[str, Any]:
    """A JSON object, such as in the metadata of recordings. Raises UserError, its message beginning with
    `where`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}); the file is damaged") from error
    if not isinstance(values, dict):
        raise UserError(f"{where} is {text[:40]!r}; expected a JSON object")
    return values


def _state_dict(values: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in values.items():
        name = str(key)
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if not isinstance(value, Tensor):
            raise UserError(
                f"{where}: {name} is a {type(value).__name__}; expected only tensors in a state dict"
            )
        if name in state:
            raise UserError(f"{where}: weight {name} is there twice, under different prefixes")
        state[name] = value
    if not state:
        raise UserError(f"{where} holds no weights; expected a state dict")
    return state
