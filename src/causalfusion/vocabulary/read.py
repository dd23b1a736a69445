"""Reading a command line in any accepted spelling and bringing it into the form that the commands take.

Options become `--name=value`, with whole numbers checked and `~` expanded; values without an option's name
follow after `--`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from causalfusion.config.recipes import expand_home, recipe_names
from causalfusion.errors import UserError
from causalfusion.vocabulary.options import Command, Option, nearest
from causalfusion.vocabulary.words import (
    MANY_PATHS,
    OLD,
    OLD_POSITIONAL,
    POSITIONAL,
    advice_on,
    known_option,
    same_last_word,
)

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")

PATHS = (
    "--out", "--model", "--teacher", "--mask", "--samples", "--reference", "--prompts-file", "--classes-file",
)  # fmt: skip


@dataclass
class Line:
    """A command line that has been read."""

    command: Command
    given: dict[str, list[str]] = field(default_factory=dict)
    """Values by option, in the order of the line."""
    positional: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def value(self, name: str) -> str | None:
        """The last value of an option; None if it is not given."""
        return self.given[name][-1] if self.given.get(name) else None

    def tables(self) -> dict[str, Any]:
        """The options that are given, as tables of settings."""
        tables: dict[str, Any] = {}
        for name, values in self.given.items():
            *path, last = name.removeprefix("--").replace("-", "_").split(".")
            table = tables
            for part in path:
                table = table.setdefault(part, {})
            table[last] = values
        return tables

    def tokens(self) -> list[str]:
        """The line as the command takes it."""
        own, others = [], []
        for name, values in self.given.items():
            target = own if name in self.command.options else others
            option = self.command.get(name)
            assert option is not None
            if option.count > 1:
                target += [name, *values]
            else:
                target += [f"{name}={value}" for value in values]
        behind = [*others, *self.positional]
        return [*self.command.name.split(), *own, *(["--", *behind] if behind else [])]


def read_line(command: Command, tokens: Sequence[str]) -> Line:
    """Read the tokens that follow a command. Raises UserError for an option that the command does not have,
    with a suggestion."""
    line, rest = Line(command), list(tokens)
    while rest:
        token = rest.pop(0)
        if token == "--":
            line.positional += rest
            break
        if not looks_like_option(token):
            line.positional.append(token)
            continue
        word, equals, value = token.partition("=")
        ahead = value if equals else (rest[0] if rest and not looks_like_option(rest[0]) else None)
        option, negated = find_option(line, word.replace("_", "-"), ahead, rest)
        _take(line, option, negated, value if equals else None, rest)
    _place_positional(line)
    for name, values in line.given.items():
        if name in PATHS and "" in values:  # an empty path would mean the current folder
            raise UserError(f"{name} is empty; expected a path (is a variable of the shell not set?)")
    return line


def looks_like_option(token: str) -> bool:
    """True for a name after dashes; a number, or words with a space, are a value: "-5 degrees, snow"."""
    return bool(re.match(r"-{1,2}[A-Za-z][\w.-]*(=|$)", token))


def find_option(line: Line, word: str, ahead: str | None, rest: Sequence[str]) -> tuple[Option, bool]:
    """(the option that a word means, True if the word turns a flag off). `ahead` is the value that follows.
    Raises UserError for an unknown or ambiguous word."""
    command = line.command
    names = command.names()
    option = command.get(word)
    if option is not None:
        if option.choices and word == "--output" and ahead is not None and ahead not in option.choices:
            raise UserError(
                f"--output is {ahead!r}; expected {', '.join(option.choices)}; a folder is given by --out"
            )
        return option, False
    turned = re.sub(r"^--(.*\.)?no-", lambda found: f"--{found[1] or ''}", word)
    flag = command.get(turned) if turned != word else None
    if flag is not None and flag.kind is bool:
        return flag, True
    option = command.get(OLD.get(word, ""))
    if option is not None:
        line.notes.append(f"{word} is now called {option.name}; the old name goes with the next release")
        return option, False
    batch = line.value("--train.batch-size") or _value_in(rest, "batch-size") or ""
    advice = advice_on(command.name, word, ahead, names, int(batch) if batch.isdecimal() else 0)
    if advice is not None:
        raise UserError(f"{command.name} has no option {word}: {advice}")
    found = known_option(word, names)
    option = command.get(found) if found else None
    if option is not None:
        return option, False
    candidates = same_last_word(word, names)
    if candidates:
        raise UserError(f"{word} may be one of {', '.join(candidates)}; say which")
    near = nearest(word, names)
    hint = f"did you mean {near}?" if near else f"see causalfusion {command.name} --help-all"
    raise UserError(f"{command.name} has no option {word}; {hint}")


def _value_in(rest: Sequence[str], ending: str) -> str | None:
    """The value of an option later on the line, in any spelling; None if it is not there."""
    for place, token in enumerate(rest):
        word, equals, value = token.partition("=")
        if looks_like_option(token) and word.replace("_", "-").endswith(ending):
            return value if equals else (list(rest[place + 1 : place + 2]) or [None])[0]
    return None


def _take(line: Line, option: Option, negated: bool, value: str | None, rest: list[str]) -> None:
    """Move the values of an option from the rest of the line to `line`. Raises UserError for a wrong number
    of values, or a flag that is neither true nor false."""
    if option.kind is bool:
        if value is None and rest and rest[0].lower() in TRUE + FALSE:
            value = rest.pop(0)
        text = "true" if value is None else value.lower()
        if text not in (*TRUE, *FALSE, "1", "0"):
            raise UserError(f"{option.name} is {value!r}; expected true or false")
        line.given.setdefault(option.name, []).append(str((text in (*TRUE, "1")) != negated).lower())
        return
    many = option.many or option.name in MANY_PATHS
    values = [] if value is None else [value]
    wanted = option.count
    while rest and ((value is None and many) or len(values) < wanted) and not looks_like_option(rest[0]):
        if rest[0] == "--":
            break
        values.append(rest.pop(0))
    if value is None and not many and not values and rest and option.kind is str and _is_text(line, rest[0]):
        values.append(rest.pop(0))
    if len(values) == 1 and wanted > 1:
        values = values[0].split(",")
    if len(values) < wanted or not (many or len(values) == wanted):
        count = "a value" if wanted == 1 else f"{wanted} values"
        raise UserError(f"{option.name} requires {count}")
    line.given.setdefault(option.name, []).extend(converted(option, value) for value in values)


def _is_text(line: Line, token: str) -> bool:
    """True for a value that begins like an option: one dash and a word that is no option's name."""
    word = token.partition("=")[0]
    known = token.startswith("--") or line.command.get(f"-{word}") or known_option(word, line.command.names())
    return not known


def converted(option: Option, value: str) -> str:
    """An option's value with a whole number written in digits, or `~` replaced by the home folder."""
    if option.kind is int:
        return whole_number(option.name, value)
    if option.kind is float:
        return number(option.name, value)
    if option.kind is str and option.name != "--prompt":
        return expand_home(value)
    return value


def whole_number(name: str, text: str) -> str:
    """A whole number, such as 1e6 or 1_000, in digits. Raises UserError for anything else, such as 12.6."""
    try:
        return str(int(text, 0) if text.lower().lstrip("+-").startswith(("0x", "0b", "0o")) else int(text))
    except ValueError:
        pass
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number != number.to_integral_value() or abs(number) > 10**18:
        raise UserError(f"{name} is {text!r}; expected a whole number")
    return str(int(number))


def number(name: str, text: str) -> str:
    """A number as it was given. Raises UserError for what is none, such as 0,5."""
    try:
        float(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}; expected a number such as 0.5 or 3e-4") from None
    return text


def _place_positional(line: Line) -> None:
    """Assign values without an option's name: to the data of commands that read some, to options that earlier
    versions took without a name, or to the command's own arguments. Raises UserError for superfluous ones."""
    command = line.command
    old = OLD_POSITIONAL.get(command.name)
    line.positional = [expand_home(value) for value in line.positional]
    if not line.positional:
        return
    if command.name in POSITIONAL:
        option = POSITIONAL[command.name]
        if option in line.given:
            raise UserError(f"{line.positional[0]!r} and {option} are both given; expected one of them")
        if option == "--data.path":
            _refuse_recipe(line)
        if option in ("--teacher", "--model") and len(line.positional) > 1:
            raise UserError(f"unexpected {line.positional[1]!r}; {command.name} takes one model")
        line.given[option], line.positional = line.positional, []
    elif old is not None:
        values, line.positional = line.positional, []
        if old == "--model" and (len(values) > 1 or old in line.given):
            raise UserError(f"unexpected {values[-1]!r}; {command.name} takes one model: {old} MODEL")
        line.given[old] = [*values, *line.given.get(old, [])]
        line.notes.append(
            f"{command.name} {' '.join(values)} is now {command.name} "
            f"{' '.join(f'{old} {value}' for value in values)}; the old spelling goes with the next release"
        )
    elif len(line.positional) > command.max_positional:
        unexpected = line.positional[int(command.max_positional)]
        takes = "one value without an option's name" if command.max_positional else "options only"
        raise UserError(f"unexpected {unexpected!r}; {command.name} takes {takes}")


def _refuse_recipe(line: Line) -> None:
    from pathlib import Path

    first = line.positional[0]
    if first in recipe_names() and not Path(first).exists():
        raise UserError(f"{first} is a recipe; expected --config {first}")
