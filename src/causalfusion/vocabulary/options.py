"""The options of one command, read from its signature: names, types, and how many values each takes."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from causalfusion.config import RunConfig

CLOSE = 0.7
"""Least similarity of an option that is suggested for an unknown one."""


@dataclass(frozen=True)
class Option:
    name: str
    """The name with its dashes: `--data.path`."""
    kind: type
    """Type of a value: int, float, bool or str (paths and choices too)."""
    choices: tuple[str, ...] = ()
    many: bool = False
    """The option is a list, which takes all values that follow."""
    count: int = 1
    """Number of values of one occurrence, for an option that is not a list."""
    or_number: bool = False
    """A text that may be a number instead."""

    @property
    def last_word(self) -> str:
        return self.name.removeprefix("--").rpartition(".")[2]


@dataclass(frozen=True)
class Command:
    """A command and its options; `passed_on` are settings of a run that it passes on unread (`estimate`)."""

    name: str
    options: dict[str, Option]
    passed_on: dict[str, Option]
    max_positional: float
    """Largest number of values without an option's name."""

    def get(self, name: str) -> Option | None:
        return self.options.get(name) or self.passed_on.get(name)

    def names(self) -> list[str]:
        return [*self.options, *self.passed_on]


def command_of(name: str, app: App) -> Command:
    """The command that `app` runs."""
    options: dict[str, Option] = {}
    most = 0.0
    for argument in app.assemble_argument_collection():
        if argument.index is not None:
            most += argument.token_count()[0] if not argument.token_count()[1] else math.inf
        label = argument.names[0] if argument.names else ""
        if label.startswith("--") and not argument.children and label not in options:
            options[label] = option(label, argument.hint)
    return Command(name, options, dict(run_options()) if name == "estimate" else {}, most)


def run_options() -> Iterable[tuple[str, Option]]:
    """(name, option) of every setting of a run."""
    for table, hint in typing.get_type_hints(RunConfig).items():
        if table == "finetune":  # which a command of its own fills in
            continue
        fields = typing.get_type_hints(hint).items() if dataclasses.is_dataclass(hint) else ()
        for name, kind in fields:
            label = f"--{table}.{name}".replace("_", "-")
            yield label, option(label, kind)


def option(name: str, hint: Any) -> Option:
    """The option of a name and a type of value."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if str in args:
            return Option(name, str, or_number=int in args)
        (hint,) = [arg for arg in args if arg is not type(None)][:1]
        return option(name, hint)
    if origin is Literal:
        return Option(name, str, tuple(map(str, args)))
    if origin is tuple and Ellipsis not in args:
        return Option(name, option(name, args[0]).kind, count=len(args))
    if origin is not None:
        entry = option(name, args[0])
        return Option(name, entry.kind, entry.choices, many=True)
    return Option(name, str if hint is Path or hint not in (int, float, bool) else hint)


def nearest(word: str, names: Sequence[str]) -> str | None:
    """The name that is most similar to a word, as a whole or in its last part; None if none is close."""

    def last(name: str) -> str:
        return re.split(r"[.]", name.lstrip("-"))[-1]

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, word, name).ratio()
        return max(whole, 0.98 * difflib.SequenceMatcher(None, last(word), last(name)).ratio())

    best = max(names, key=likeness, default=None)
    return best if best is not None and likeness(best) >= CLOSE else None
