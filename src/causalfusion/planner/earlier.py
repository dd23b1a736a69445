"""`plan.json`: the settings that were tried, each kept as soon as it is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causalfusion.config.serialize import from_dict, read_object, to_dict
from causalfusion.errors import UserError
from causalfusion.files import hash_of, sha256_of, write_whole
from causalfusion.planner.candidate import Candidate
from causalfusion.planner.request import PlanRequest
from causalfusion.planner.sweep import Tried

_LATER = ("weights", "reference_fingerprint")
"""Facts that the files of earlier versions lack."""


@dataclass(frozen=True, kw_only=True)
class _PlanFile:
    """The content of `plan.json`: facts that the figures depend on, and the settings tried, by their hash."""

    facts: dict[str, str | int]
    settings: dict[str, Tried]


class EarlierTrials:
    """The settings in `plan.json`, timed and measured with the same model, device and options."""

    def __init__(self, path: Path, facts: dict[str, Any], found: dict[str, Tried]) -> None:
        self.path, self.facts, self.found = path, facts, found

    @classmethod
    def open(cls, request: PlanRequest, candidate: Candidate, device: str, fingerprint: str) -> EarlierTrials:
        """Read the request's `plan.json`; `fingerprint` is that of the reference's images. Raises UserError
        for a file that was made with another model, device or options, or other prompts."""
        path, folder = request.out / "plan.json", candidate.folder
        facts = {
            "model": str(folder.resolve()),
            "device": device,
            "threads": torch.get_num_threads(),
            "precision": request.precision,
            "batch_size": request.batch_size,
            "images": request.images,
            "seed": request.seed,
            "features": request.features,
            "reference": request.reference,
            "weights": sha256_of(folder / "model.safetensors"),
            "reference_fingerprint": fingerprint,
            "size": request.size,
            "prompts": "" if candidate.prompts is None else hash_of(candidate.prompts),
        }
        if not path.exists():
            return cls(path, facts, {})
        try:
            before = _read_plan(path)
        except UserError as error:
            raise UserError(f"{error}; delete it, or give another --out") from None
        said = {**dict.fromkeys(_LATER), "size": "", "prompts": "", **before.facts}
        changed = [n for n, value in facts.items() if said.get(n) != value and (n not in _LATER or said[n])]
        if changed:
            raise UserError(
                f"{path} was measured with {changed[0]} {said.get(changed[0])!r}, now it is "
                f"{facts[changed[0]]!r}; give another --out"
            )
        return cls(path, facts, before.settings)

    def get(self, key: str) -> Tried | None:
        return self.found.get(key)

    def add(self, key: str, tried: Tried) -> None:
        self.found[key] = tried
        values = {"facts": self.facts, "settings": {key: to_dict(trial) for key, trial in self.found.items()}}
        write_whole(self.path, json.dumps(values, indent=1) + "\n")


def _measure_of(confirmed: Any) -> str | None:
    """What the files of earlier versions confirmed: a distance, which is above 0, or a share, with a minus
    sign, as less of it is worse."""
    if not isinstance(confirmed, int | float):
        return None
    return "frechet" if confirmed > 0 else "accuracy"


def _read_plan(path: Path) -> _PlanFile:
    """Raises UserError for a file that is damaged."""
    values = read_object(path, "plan")
    settings = values.get("settings")
    for trial in settings.values() if isinstance(settings, dict) else ():
        if isinstance(trial, dict):
            trial.setdefault("model", "")  # which the files of earlier versions lack
            trial.setdefault("confirmed", None)
            trial.setdefault("confirmed_by", _measure_of(trial["confirmed"]))
    try:
        return from_dict(_PlanFile, values, complete=True)
    except UserError as error:
        raise UserError(f"plan: {path}: {error}") from None
