"""Configurations as plain JSON types and back, exactly; what does not fit is refused by its full name."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal, TypeVar

from causalfusion.config import check
from causalfusion.errors import UserError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; tuples as the lists that JSON and TOML have."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Build a configuration, refusing unknown keys and values of another type by their full name."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"unknown setting {where}{unknown[0]}; expected one of {', '.join(sorted(hints))}")
    converted = {name: _convert(hints[name], value, where + name) for name, value in values.items()}
    missing = [
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if missing:
        raise UserError(f"setting {where}{missing[0]} is missing; the configuration is damaged")
    return cls(**converted)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where} is {value!r}; expected a table of settings")
        return from_dict(typing.cast(type, hint), value, where + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        check(value in args, where, value, "one of " + ", ".join(map(str, args)))
        return value
    if origin in (list, tuple):
        check(isinstance(value, list | tuple), where, value, "a list")
        fixed = origin is tuple and len(value) != len(args)
        check(not fixed, where, value, f"{len(args)} numbers")
        items = [_convert(args[0], item, where) for item in value]
        return items if origin is list else tuple(items)
    if origin is dict:
        check(isinstance(value, dict), where, value, "a table")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    ok = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    check(ok, where, value, f"a value of type {getattr(hint, '__name__', hint)}")
    return value
