"""Named recipes: TOML files in `recipes/` that hold some settings each, and are laid over one another.

`--config imagenet256 --config XL --config mine.toml` takes the paper's recipe, then the size, then yours;
the command line comes last. A recipe names what it builds on in `base`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from causalfusion.config import RunConfig
from causalfusion.config_json import from_dict
from causalfusion.errors import UserError

SIZES = ("tiny", "S", "B", "L", "XL", "H", "H48")


def recipe_names() -> list[str]:
    folder = resources.files("causalfusion") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_layer(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """One recipe, by its name or as a file, with its bases beneath it; `above` are those it is a base of."""
    if name in above:
        raise UserError(f"config {name} is its own base: {' -> '.join((*above, name))}")
    if name in recipe_names():
        text = (resources.files("causalfusion") / "recipes" / f"{name}.toml").read_bytes()
    elif Path(name).is_file():
        text = Path(name).read_bytes()
    else:
        raise UserError(
            f"config {name!r} is neither a file nor a recipe; the recipes are {', '.join(recipe_names())}"
        )
    try:
        values = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config {name} is not valid TOML: {error}") from None
    bases = values.pop("base", [])
    if not isinstance(bases, list):
        raise UserError(f'config {name}: base is {bases!r}; expected a list, such as base = ["XL"]')
    return merge([*(load_layer(base, (*above, name)) for base in bases), values])


def load_layers(names: Sequence[str]) -> dict[str, Any]:
    """Recipes laid over one another, the last on top."""
    return merge([load_layer(name) for name in names])


def load_config(*names: str, **sections: dict[str, Any]) -> RunConfig:
    """A `RunConfig` from recipes and, on top, settings: load_config("digits", train={"images": 1000})."""
    return from_dict(RunConfig, merge([load_layers(names), sections]))


def merge(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tables are merged key by key; any other value replaces the one below it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                merged[key] = merge([below, value])
            else:
                merged[key] = value
    return merged
