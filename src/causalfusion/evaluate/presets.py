"""Named evaluations: TOML files in `evaluations/` that hold all settings which decide a figure, such as the
paper's."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from causalfusion.errors import UserError


def evaluation_names() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.toml"))


def evaluation_file(name: str) -> Path:
    if name not in evaluation_names():
        raise UserError(
            f"evaluation preset {name!r} is unknown; expected one of {', '.join(evaluation_names())}"
        )
    return _folder() / f"{name}.toml"


def load_evaluation(name: str) -> dict[str, Any]:
    """The preset's settings: those of a sample under their own names, `images`, `features`, ..."""
    return tomllib.loads(evaluation_file(name).read_text("utf-8"))


def changes(name: str, used: dict[str, Any]) -> dict[str, Any]:
    """Which of the preset's settings are other ones in `used`, and what they are there."""
    preset = load_evaluation(name)
    return {key: used[key] for key, value in preset.items() if key in used and used[key] != value}


def _folder() -> Path:
    return Path(str(resources.files("causalfusion") / "evaluations"))
