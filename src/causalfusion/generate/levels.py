"""Noise levels in words: `clean`, or where on the path of noise tokens are."""

from __future__ import annotations

from causalfusion.errors import UserError

CLEAN = "clean"


def parse_level(text: str, setting: str) -> float | None:
    """The level of a text such as "0.2"; None for "clean". Raises UserError that begins with the setting."""
    if text == CLEAN:
        return None
    try:
        level = float(text)
    except ValueError:
        level = -1.0
    if not 0 <= level < float("inf"):
        raise UserError(
            f"{setting} is {text!r}; expected clean, a share of the path of noise from 0 (the least) to 1, "
            "or a timestep above 1"
        )
    return level


def level_text(level: float | None) -> str:
    """The same level in words."""
    return CLEAN if level is None else f"{level:g}"


def parse_place(place: str) -> tuple[str, int | None, str]:
    """(model, layer or None, level) of RUN[:LAYER[:LEVEL]], where RUN itself may have colons."""
    run, _, last = place.rpartition(":")
    before, _, layer = run.rpartition(":")
    if before and _is_layer(layer):
        return before, int(layer), last
    return (run, int(last), CLEAN) if run and _is_layer(last) else (place, None, CLEAN)


def _is_layer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
