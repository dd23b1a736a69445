"""The sampling settings that a model folder recommends."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from causalfusion.config import SampleConfig
from causalfusion.config.options import GeneratingOptions
from causalfusion.config.serialize import from_dict, parse_toml, to_toml, toml_value
from causalfusion.files import write_whole
from causalfusion.saved.folder import SAMPLING_FILE


def read_sampling(folder: Path) -> SampleConfig | None:
    """The recommended sampling in a model folder; None where there is none. The file may also set options of
    the commands that generate, such as `seed`, which are no settings of sampling. Raises UserError."""
    path = folder / SAMPLING_FILE
    if not path.is_file():
        return None
    values, options = parse_toml(path.read_bytes(), str(path)), _options()
    return from_dict(SampleConfig, {n: v for n, v in values.items() if n not in options}, f"{path}: ")


def write_sampling(folder: Path, sampling: SampleConfig) -> None:
    """Make this the recommended sampling of a model folder; options of commands in the file stay."""
    path = folder / SAMPLING_FILE
    values, options = parse_toml(path.read_bytes(), str(path)) if path.is_file() else {}, _options()
    kept = [f"{name} = {toml_value(value)}\n" for name, value in values.items() if name in options]
    write_whole(path, to_toml(sampling) + "".join(kept))


def _options() -> set[str]:
    return {option.name for option in fields(GeneratingOptions)}
