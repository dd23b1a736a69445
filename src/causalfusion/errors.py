"""The one exception that means: the user gave something that cannot be used."""

from __future__ import annotations


class UserError(ValueError):
    """What was wrong, what was expected, what to do: one line. The CLI prints it and exits with code 2."""


def check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value!r}; expected {expected}")
