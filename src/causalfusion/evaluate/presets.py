"""Evaluation presets: TOML files in `evaluations/` with all settings that decide a figure."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from causalfusion.errors import UserError


def evaluation_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def evaluation_file(name: str) -> Path:
    """File of a preset. Raises UserError for an unknown name."""
    if name not in evaluation_names():
        raise UserError(
            f"evaluation preset {name!r} is unknown; expected one of {', '.join(evaluation_names())}"
        )
    return _folder() / f"{name}.toml"


def load_evaluation(name: str) -> dict[str, Any]:
    """Settings of a preset: `images`, `features`, ..., and those of sampling by their own names. Raises
    UserError for an unknown preset."""
    return tomllib.loads(evaluation_file(name).read_text("utf-8"))


def changes(name: str, used: dict[str, Any]) -> dict[str, Any]:
    """The settings in `used` whose values differ from the preset's."""
    preset = load_evaluation(name)
    return {key: used[key] for key, value in preset.items() if key in used and used[key] != value}


def _folder() -> Path:
    return Path(str(resources.files("causalfusion") / "evaluations"))
