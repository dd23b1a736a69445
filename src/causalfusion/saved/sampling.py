"""The sampling settings that a model folder recommends."""

from __future__ import annotations

from pathlib import Path

from causalfusion.config import SampleConfig
from causalfusion.config.serialize import from_dict, parse_toml
from causalfusion.saved.folder import SAMPLING_FILE


def read_sampling(folder: Path) -> SampleConfig | None:
    """The recommended sampling in a model folder; None where there is none. Raises UserError."""
    path = folder / SAMPLING_FILE
    if not path.is_file():
        return None
    return from_dict(SampleConfig, parse_toml(path.read_bytes(), str(path)), f"{path}: ")
