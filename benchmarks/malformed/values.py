"""Damage to bytes, to JSON and to text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    7,
    10**6,
    2**31,
    2**63,
    10**30,
    10**400,
    -(10**400),
    0.5,
    -0.5,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "x",
    "x" * 100_000,
    "\x1b[2J\x1b]0;t\x07",
    "../../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "a\x00b",
    "\ud800",
    [],
    [[]],
    {},
    {"": None},
    [1, "2", None],
    {"a": {"b": [1]}},
)
"""Values of every type, and those at the edges of their type."""
DEEP = 100_000


# --- bytes ----------------------------------------------------------------------------------------------


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut short, bits flipped, parts overwritten, repeated, removed or inserted."""
    if not content:
        return rng.randbytes(20)
    data, place = bytearray(content), rng.randrange(len(content))
    length = min(rng.choice((1, 2, 4, 8, 64, 512)), len(content) - place)
    match rng.randrange(9):
        case 0:
            return content[:place]
        case 1:
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            data[place : place + length] = bytes(length)
        case 3:
            data[place : place + length] = b"\xff" * length
        case 4:
            data[place : place + length] = rng.randbytes(length)
        case 5:
            del data[place : place + length]
        case 6:
            data[place:place] = rng.randbytes(length)
        case 7:
            data[place:place] = data[place : place + length] * rng.choice((1, 100))
        case 8:
            return rng.choice((b"", b"\0", b"\0" * 100_000, rng.randbytes(1000), content + content))
    # Most damage that matters is at the beginning, where the structure is.
    if rng.random() < 0.5:
        early = rng.randrange(min(64, len(data) or 1))
        data[early : early + 1] = rng.randbytes(1)
    return bytes(data)


# --- JSON and text --------------------------------------------------------------------------------------


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """A value replaced by one of another type, a key removed, added or doubled, or the whole replaced."""
    kind = rng.random()
    if kind < 0.12:
        return damage_bytes(content, rng)
    if kind < 0.16:
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        return (opening * DEEP + "0" + closing * DEEP).encode()
    values = json.loads(content)
    places = [place for place in _places(values) if place[1] is not None]
    if kind < 0.2 or not places:
        return _dump(rng.choice(STRANGE))
    holder, key = rng.choice(places)
    if kind < 0.3:
        del holder[key]
    elif kind < 0.35 and isinstance(holder, dict):
        holder[rng.choice(("", "new", "\x1b[31m", "__class__"))] = rng.choice(STRANGE)
    elif kind < 0.4:
        text = _dump(values)  # a number that no double holds
        return text.replace(_dump(holder[key]), rng.choice((b"1e999", b"-0", b"NaN", b"9" * 5000)), 1)
    else:
        holder[key] = rng.choice(STRANGE)
    return _dump(values)


def _dump(values: Any) -> bytes:
    return json.dumps(values).encode("utf-8", "surrogatepass")


def _places(values: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value at any depth."""
    found: list[tuple[Any, Any]] = []
    items: list[Any] = list(values.items()) if isinstance(values, dict) else []
    items = list(enumerate(values)) if isinstance(values, list) else items
    for key, value in items:
        found.append((values, key))
        found += _places(value)
    return found


def damage_lines(content: bytes, rng: random.Random) -> bytes:
    """One line of JSON lines damaged as JSON, or the bytes."""
    lines = content.splitlines()
    if rng.random() < 0.25 or not lines:
        return damage_bytes(content, rng)
    place = rng.randrange(len(lines))
    lines[place] = damage_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def damage_text(content: bytes, rng: random.Random) -> bytes:
    """A value of TOML, or a line of a list, replaced."""
    lines = content.decode("utf-8").splitlines()
    if rng.random() < 0.4 or not lines:
        return damage_bytes(content, rng)
    place = rng.randrange(len(lines))
    name = lines[place].partition("=")[0]
    value = rng.choice(
        (
            "nan",
            "inf",
            "-1",
            "1e400",
            "10_000_000_000_000_000_000_000",
            '""',
            "[]",
            "{}",
            "true",
            "[" * DEEP,
            "1979-05-27",
            '"\\u001b[2J"',
            "'''x",
            "[[1], [2]]",
            '"x"' * 3,
            "\ufeff",
            "-5 degrees",
            "x" * 200_000,
        )
    )
    lines[place] = f"{name}= {value}" if "=" in lines[place] else value
    if rng.random() < 0.2:
        lines.insert(place, lines[place])
    return "\n".join(lines).encode()
