"""The sampling settings that a model folder recommends."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from causalfusion.config import SampleConfig
from causalfusion.config.options import GeneratingOptions
from causalfusion.config.serialize import from_dict, parse_toml
from causalfusion.saved.folder import SAMPLING_FILE


def read_sampling(folder: Path) -> SampleConfig | None:
    """The recommended sampling in a model folder; None where there is none. The file may also set options of
    the commands that generate, such as `seed`, which are no settings of sampling. Raises UserError."""
    path = folder / SAMPLING_FILE
    if not path.is_file():
        return None
    options = {option.name for option in fields(GeneratingOptions)}
    values = parse_toml(path.read_bytes(), str(path))
    return from_dict(SampleConfig, {n: v for n, v in values.items() if n not in options}, f"{path}: ")
