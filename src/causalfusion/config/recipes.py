"""Named recipes: TOML files in `recipes/`, each with some of the settings.

With `--config imagenet256 --config XL --config mine.toml`, later recipes override earlier ones, and the
command line overrides all. A recipe lists the recipes that it extends in `base`, and facts about its data in
`facts`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from causalfusion.config import ModelConfig, RunConfig
from causalfusion.config.earlier import rename_settings
from causalfusion.config.generation import OVERRULED_SAMPLING, foreign_to
from causalfusion.config.serialize import from_dict, parse_toml
from causalfusion.errors import UserError, check

FACTS = "facts"
PAPER_PARAMETERS = {
    "L": "368M",
    "XL": "676M, but its sizes give 714M with 64 class tokens and 1000 classes",
    "H": "about 1B",
}
OVERRULED = {**OVERRULED_SAMPLING, "epochs": ("images",)}
"""Settings that count for more than others beside them, of a run too: `given_order` is also one of plans."""
SIZES = ("tiny", "S", "B", "L", "XL", "H", "H48")


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data that a recipe is meant for, for use without the data themselves; 0: unknown."""

    image_size: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        check(self.image_size >= 0, "facts.image_size", self.image_size, "0 or a positive number of pixels")
        check(self.classes >= 0, "facts.classes", self.classes, "0 or a positive number")


def recipe_names() -> list[str]:
    folder = resources.files("causalfusion") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_layer(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe, by its name or as a file, merged over those of its bases; `above` are the
    recipes whose base it is. Raises UserError if it is missing, damaged or its own base."""
    if name in above:
        raise UserError(f"config {name} is its own base: {' -> '.join((*above, name))}")
    if name in recipe_names():
        text = (resources.files("causalfusion") / "recipes" / f"{name}.toml").read_bytes()
    elif Path(expand_home(name)).is_file():
        text = Path(expand_home(name)).read_bytes()
    else:
        near = difflib.get_close_matches(name, recipe_names(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        known = ", ".join(recipe_names())
        raise UserError(f"config {name!r} is neither a file nor a recipe{hint}; the recipes are {known}")
    values = parse_toml(text, f"config {name}")
    bases = values.pop("base", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f'config {name}: base is {bases!r}; expected a list, such as base = ["XL"]')
    values = rename_settings(_expand_all(values), f"config {name}")
    return merge([*(load_layer(base, (*above, name)) for base in bases), values])


def expand_home(text: str) -> str:
    """A path with a leading `~` replaced by the home folder, also after a prefix: `inception:~/weights`."""
    return re.sub(r"^([\w.-]+:)?(~[^/]*(?=/|$))", lambda m: (m[1] or "") + os.path.expanduser(m[2]), text)


def _expand_all(values: Any) -> Any:
    """`expand_home` of every string in the tables of a TOML file."""
    if isinstance(values, dict):
        return {key: _expand_all(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_expand_all(value) for value in values]
    return expand_home(values) if isinstance(values, str) else values


def load_layers(names: Sequence[str]) -> dict[str, Any]:
    """The merged settings of recipes; later ones override earlier ones."""
    layers = merge([load_layer(name) for name in names])
    layers.pop(FACTS, None)
    return layers


def load_facts(names: Sequence[str]) -> DataFacts:
    """The merged facts that recipes state about their data."""
    facts = merge([load_layer(name) for name in names]).get(FACTS, {})
    if not isinstance(facts, dict):
        raise UserError(f"facts is {facts!r}; expected a table, such as: [facts] image_size = 32")
    return from_dict(DataFacts, facts, f"{FACTS}.")


def load_config(*names: str, **sections: dict[str, Any] | str) -> RunConfig:
    """A `RunConfig` from recipes and settings that override them, as in
    load_config("digits", out="runs/short", train={"images": 1000}). Raises UserError."""
    return from_dict(RunConfig, merge([load_layers(names), sections]))


def merge(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge tables key by key; a value that is not a table replaces the one in earlier layers, and what would
    overrule it there (OVERRULED)."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = without_overruled(merged, layer)
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                merged[key] = merge([below, value])
            else:
                merged[key] = value
    return merged


def without_overruled(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table without those that would overrule ones `above`, which come later, or that a
    sampler named there does not have; also of the tables in it."""
    dropped = {name for name, plain in OVERRULED.items() if any(each in above for each in plain)}
    if "sampler" in above:
        eta = _said(above.get("eta", below.get("eta", 0)))
        dropped.update(foreign_to(_said(above["sampler"]), eta=bool(str(eta).strip("0."))))
    dropped -= above.keys()
    return {
        name: without_overruled(value, above[name])
        if isinstance(value, dict) and isinstance(above.get(name), Mapping)
        else value
        for name, value in below.items()
        if name not in dropped
    }


def _said(value: Any) -> Any:
    """The value of a setting, which the command line has as a list of words."""
    return value[-1] if isinstance(value, list) and value else value


def paper_size(model: ModelConfig) -> str:
    """The paper's parameter count for a model of this size, in parentheses; empty for sizes that are not in
    the paper."""
    for size, said in PAPER_PARAMETERS.items():
        named = load_layer(size)["model"]
        if all(getattr(model, key) == value for key, value in named.items()):
            return f" (size {size}: the paper says {said})"
    return ""
