"""Exact conversion of configurations to JSON types and back; errors name the setting in full.

Our own rather than a library, as what is refused, and in which words, is most of it: one line with the
setting's full name, its value and the values that are possible; whole floats for integers in what people
write but not in what must be complete; no booleans for numbers, no NaN, no key too many, and on
request none too few.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from causalfusion.errors import UserError, check

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON types, the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def to_toml(config: Any) -> str:
    """The settings of a configuration, one per line; it must not contain tables."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in to_dict(config).items())


def toml_value(value: Any) -> str:
    """A text, number, truth value or list as TOML writes it: as JSON does, but for characters beyond 16 bits,
    of which JSON's escapes are pairs that TOML refuses, and DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: {"a": {"b": 1}} becomes {"a.b": 1}; tuples become lists, as in JSON and TOML."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def from_dict(cls: type[T], values: dict[str, Any], where: str = "", *, complete: bool = False) -> T:
    """A configuration, or any other dataclass, from JSON types. Raises UserError, with the setting's full
    name, for an unknown key, a value of another type and a number that is not finite; with `complete`, also
    for a missing key."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"unknown setting {where}{unknown[0]}; expected one of {', '.join(sorted(hints))}")
    converted = {name: _convert(hints[name], item, where + name, complete) for name, item in values.items()}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
        if field.name not in values and (complete or not has_default):
            raise UserError(f"setting {where}{field.name} is missing; the configuration is damaged")
    return cls(**converted)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises UserError, its message beginning with `what`, for a file that is
    missing, unreadable, not UTF-8 or not JSON (NaN and Infinity are not)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{what}: {path} is missing") from None
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read ({error.strerror or error})") from None
    return _parse_json(content, f"{what}: {path}")


def _parse_json(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}); it is damaged") from None


def parse_toml(content: bytes, what: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises UserError, its message beginning with `what`, for invalid TOML."""
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid TOML: {error}") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError as `read_json` does, and for any other content."""
    return _object(read_json(path, what), f"{what}: {path}")


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The object in the content of a JSON file, which messages call `where`. Raises UserError as
    `read_object` does."""
    return _object(_parse_json(content, where), where)


def _object(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"{where} holds a JSON {kind}, expected an object; it is damaged")
    return values


def read_record(cls: type[T], path: Path, what: str) -> T:
    """A dataclass from a JSON file with all its fields. Raises UserError, its message beginning with `what`
    and naming the file and the field, for a missing field or a value of another type."""
    values = read_object(path, what)
    try:
        return from_dict(cls, values, complete=True)
    except UserError as error:
        raise UserError(f"{what}: {path}: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _convert(hint: Any, value: Any, where: str, complete: bool = False) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where} is {_short(value)}; expected a table of settings")
        return from_dict(typing.cast(type, hint), value, where + ".", complete=complete)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin is Literal:
        check(value in args, where, _short(value), "one of " + ", ".join(map(str, args)))
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(args, value, where, complete)
    if origin in (list, tuple):
        return _convert_row(origin, args, value, where, complete)
    if origin is dict:
        check(isinstance(value, dict), where, _short(value), "a table")
        return {key: _convert(args[1], item, f"{where}.{key}", complete) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if hint is int and isinstance(value, float) and value.is_integer() and not complete:
        value = int(value)  # train.images = 1e6
    ok = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    check(ok, where, _short(value), f"a value of type {getattr(hint, '__name__', hint)}")
    check(hint is not float or math.isfinite(value), where, value, "a finite number")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, where: str, complete: bool) -> Any:
    """The value converted to the first type of a union that it fits."""
    if value is None and type(None) in args:
        return None
    problems = []
    for hint in args:
        if hint is not type(None):
            try:
                return _convert(hint, value, where, complete)
            except UserError as error:
                problems.append(error)
    raise problems[0]


def _convert_row(origin: type, args: tuple[Any, ...], value: Any, where: str, complete: bool) -> Any:
    """A list converted to a list, to a tuple of a fixed number of values, or to a tuple of any length."""
    check(isinstance(value, list | tuple), where, _short(value), "a list")
    endless = origin is list or (len(args) == 2 and args[1] is Ellipsis)
    check(endless or len(value) == len(args), where, _short(value), f"{len(args)} values")
    hints = [args[0]] * len(value) if endless else args
    return origin(_convert(hint, item, where, complete) for hint, item in zip(hints, value, strict=True))


def _short(value: object) -> Any:
    """A value for a message; a long one is cut."""
    text = repr(value)
    return value if len(text) <= 60 else f"{text[:57]}..."
