"""Settings of a command from recipes and TOML files, which its options on the command line override.

A recipe describes a training run. Each command uses the tables that concern it: `sample`, `edit`, `evaluate`
and the like the table [sample], `encode` and `tokenizer train` the table [data]; it ignores the others. A
file may also name a command's options directly: `batch_size = 16`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from causalfusion.config import RunConfig
from causalfusion.config.recipes import FACTS, load_layer, merge
from causalfusion.errors import UserError
from causalfusion.vocabulary.options import Command, Option, nearest
from causalfusion.vocabulary.read import whole_number

TABLES = (
    *(field.name for field in dataclasses.fields(RunConfig) if field.name != "out"),
    FACTS,
)
READ_BY_COMMAND = ("estimate", "study")
"""Commands that read their --config themselves."""


def layers_for(command: Command, names: Sequence[str]) -> dict[str, Any]:
    """The settings of files and recipes for this command; later ones override earlier ones. Raises UserError
    for a setting that neither the command nor a recipe has, or that has another type."""
    return merge([used_settings(command, name, load_layer(name)) for name in names])


def used_settings(command: Command, source: str, layer: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a file that the command uses, as tables of its options."""
    if isinstance(layer.get("finetune"), dict) and command.name in ("train", "distill"):
        raise UserError(
            f"config {source} is for going on from a model: causalfusion finetune MODEL --config {source}"
        )
    is_recipe = any(isinstance(layer.get(table), dict) for table in TABLES)
    beneath: dict[str, Any] = {}
    direct: dict[str, Any] = {}
    for key, value in layer.items():
        if key in TABLES and (isinstance(value, dict) or not _has(command, key)):
            if not isinstance(value, dict):
                raise UserError(f"config {source}: {key} is {value!r}; expected a table of settings")
            if _takes_as_its_own(command, key):
                beneath |= {name: _checked(command, source, name, item) for name, item in value.items()}
            elif _has_table(command, key):
                direct[key] = {
                    name: _checked(command, source, f"{key}.{name}", item) for name, item in value.items()
                }
        elif key == "out" and is_recipe and not _has_table(command, "train"):
            continue  # the folder of a training run does not concern other commands
        else:
            direct[key] = _checked(command, source, key, value)
    return merge([beneath, direct])


def _has(command: Command, key: str) -> bool:
    return _option(command, key) is not None


def _has_table(command: Command, table: str) -> bool:
    return any(name.startswith(f"--{table}.") for name in command.options)


def _takes_as_its_own(command: Command, table: str) -> bool:
    """True for a command that has the settings of a recipe's table as options of its own."""
    known = {
        "sample": "num_ar_steps", "finetune": "task", "classify": "layer_decay", "distill": "teacher_steps"
    }  # fmt: skip
    return table in known and not _has_table(command, table) and _has(command, known[table])


def _option(command: Command, key: str) -> Option | None:
    return command.options.get(f"--{key}".replace("_", "-"))


def _checked(command: Command, source: str, key: str, value: Any) -> Any:
    """The value of a setting, checked to have its option's type; of a table, those of its settings. Raises
    UserError."""
    if isinstance(value, dict) and _has_table(command, key.replace("_", "-")):
        return {name: _checked(command, source, f"{key}.{name}", item) for name, item in value.items()}
    option = _option(command, key)
    if option is None:
        near = nearest(key, [name[2:].replace("-", "_") for name in command.options])
        hint = f"did you mean {near}?" if near else f"see causalfusion {command.name} --help-all"
        raise UserError(f"config {source}: unknown setting {key}; {hint}")
    where = f"config {source}: {key}"
    if option.many or option.count > 1:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}; expected a list")
        return [_of_type(option, where, item, in_list=True) for item in value]
    return _of_type(option, where, value, in_list=False)


def _of_type(option: Option, where: str, value: Any, *, in_list: bool) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.kind is int and number:
        return int(whole_number(where, repr(value)))
    right = (
        (option.kind is bool and isinstance(value, bool))
        or (option.kind is float and number)
        or (option.kind is str and (isinstance(value, str) or (number and (in_list or option.or_number))))
    )
    if not right:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        expected = " or ".join(option.choices) if option.choices else words[option.kind]
        raise UserError(f"{where} is {value!r}; expected {expected}")
    return value
