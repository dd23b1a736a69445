"""Errors for users: their class, checks that raise it, and text that is safe to print."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from typing import Any, Literal


class UserError(ValueError):
    """Wrong input. The message is one line: what is wrong, what is expected, what to do. The CLI prints it
    and exits with code 2."""


STOPPED = 3
"""Exit code of a training that was stopped before its end, so that a script does not go on without it."""


class TrainingStopped(Exception):
    """A signal ended a training before its last image. The run is saved; the same call resumes it."""

    def __init__(self, run: str, images_seen: int, images: int) -> None:
        super().__init__(run, images_seen, images)
        self.run, self.images_seen, self.images = run, images_seen, images

    def __str__(self) -> str:
        # A run that is limited by time has an unreachable number of images.
        whole = f" of {self.images}" if self.images < 10**9 else ""
        return (
            f"stopped at {self.images_seen}{whole} images, saved in {self.run}; the same command "
            "goes on from there"
        )


def brief(error: Exception | str) -> str:
    """The first line of another library's error, or of what a server says, shortened to 160 characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 160 else line[:157] + "..."


def check(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises UserError, "NAME is VALUE; expected ...", unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value!r}; expected {expected}")


def printable(text: object) -> str:
    """A text that is safe to print to a terminal: escape sequences, line breaks, other control characters and
    bytes that are not Unicode are written out, as in \\x1b."""
    raw = str(text)
    if raw.isascii() and raw.isprintable():
        return raw
    return "".join(_written_out(character) for character in raw)


def _written_out(character: str) -> str:
    if character.isprintable() or character == "\N{ZERO WIDTH JOINER}":  # part of many letters and emoji
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def check_values(config: Any, section: str) -> None:
    """Raises UserError if a number in a configuration is NaN or infinite, or a choice is none that there is:
    in Python, nothing else looks at them."""
    choices = _choices_of(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, list | tuple) else [value]
        wrong = any(isinstance(number, float) and not math.isfinite(number) for number in numbers)
        check(not wrong, f"{section}.{field.name}", value, "a finite number")
        known = choices.get(field.name)
        if known is not None and value not in known:
            check(False, f"{section}.{field.name}", value, f"one of {', '.join(map(str, known))}")


@functools.cache
def _choices_of(config: type) -> dict[str, tuple[Any, ...]]:
    """The values that each setting of a configuration may have, for those with a few."""
    hints = typing.get_type_hints(config)
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
