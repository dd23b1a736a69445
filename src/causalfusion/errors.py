"""The one exception that means: the user gave something that cannot be used."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


class UserError(ValueError):
    """What was wrong, what was expected, what to do: one line. The CLI prints it and exits with code 2."""


STOPPED = 3
"""Exit code of a training that was stopped before its end: what comes after it in a script does not go on."""


class TrainingStopped(Exception):
    """A signal ended a training before its last image. All is saved; the same call goes on from there."""

    def __init__(self, run: str, images_seen: int, images: int) -> None:
        super().__init__(run, images_seen, images)
        self.run, self.images_seen, self.images = run, images_seen, images

    def __str__(self) -> str:
        # A run that its time ends has a number of images beyond reach.
        whole = f" of {self.images}" if self.images < 10**9 else ""
        return (
            f"stopped at {self.images_seen}{whole} images, saved in {self.run}; the same command "
            "goes on from there"
        )


def check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value!r}; expected {expected}")


def printable(text: object) -> str:
    """A name, caption or value for a message: escape sequences, line breaks and other control characters, and
    bytes that are not Unicode, are written out (\\x1b), so that none of them reaches a terminal."""
    raw = str(text)
    if raw.isascii() and raw.isprintable():
        return raw
    return "".join(_written_out(character) for character in raw)


def _written_out(character: str) -> str:
    if character.isprintable() or character == "\N{ZERO WIDTH JOINER}":  # joins letters and emoji
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def check_finite(config: Any, section: str) -> None:
    """Every number of a configuration's dataclass is one: neither NaN nor infinite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, list | tuple) else [value]
        wrong = any(isinstance(number, float) and not math.isfinite(number) for number in numbers)
        check(not wrong, f"{section}.{field.name}", value, "a finite number")
