"""What the page asks a model for: the values of its controls, their bounds, and the link that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args
from urllib.parse import urlencode

from causalfusion.config.generation import OrderName
from causalfusion.errors import UserError, check

MOST_IMAGES = 16
MOST_AR_STEPS = 1024
MOST_DIFFUSION_STEPS = 250
MOST_PASSES = 32_000
"""AR steps times diffusion steps."""
MOST_GUIDANCE = 20.0
LAST_SEED = 2**32 - 1
LONGEST_TEXT = 2000
"""Characters of a prompt, and of every value in a link."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The values of the page's controls. Raises UserError, in the page's words, for what is out of bounds."""

    prompt: str = ""
    class_name: str = ""
    """The name or the number of a class; empty: every class in turn."""
    ar_steps: int = 1
    order: OrderName = "random"
    diffusion_steps: int = 100
    guidance: float = 1.0
    seed: int = 0
    images: int = 4

    def __post_init__(self) -> None:
        _check_range("the number of parts", self.ar_steps, 1, MOST_AR_STEPS)
        _check_range("the number of refinement steps", self.diffusion_steps, 1, MOST_DIFFUSION_STEPS)
        _check_range("the guidance", self.guidance, 0, MOST_GUIDANCE)
        _check_range("the seed", self.seed, 0, LAST_SEED)
        _check_range("the number of pictures", self.images, 1, MOST_IMAGES)
        orders = get_args(OrderName)
        check(self.order in orders, "the order", self.order, f"one of {', '.join(orders)}")
        for name, text in (("description", self.prompt), ("class", self.class_name)):
            if len(text) > LONGEST_TEXT:
                raise UserError(f"the {name} has {len(text):,} characters; expected at most {LONGEST_TEXT:,}")
        passes = self.ar_steps * self.diffusion_steps
        if passes > MOST_PASSES:
            raise UserError(
                f"{self.ar_steps} parts of {self.diffusion_steps} refinement steps each are {passes:,} "
                f"steps; expected at most {MOST_PASSES:,}: ask for fewer of either"
            )


NAMES = {
    "prompt": "prompt",
    "class_name": "class",
    "ar_steps": "parts",
    "order": "order",
    "diffusion_steps": "steps",
    "guidance": "guidance",
    "seed": "seed",
    "images": "pictures",
}
"""The names of the values in a link."""
_WORDS = {
    "ar_steps": "number of parts",
    "diffusion_steps": "number of refinement steps",
    "guidance": "guidance",
    "seed": "seed",
    "images": "number of pictures",
}


def read_asked(values: Mapping[str, object], otherwise: Asked) -> Asked:
    """`otherwise` with these values of its fields, which may be numbers or texts; one that is None stays.
    Raises UserError."""
    changed: dict[str, Any] = {}
    for field in fields(Asked):
        value = values.get(field.name)
        if value is None:
            continue
        if field.name in ("prompt", "class_name", "order"):
            changed[field.name] = str(value)
        elif field.name == "guidance":
            changed[field.name] = _number(value, field.name)
        else:
            changed[field.name] = _whole(value, field.name)
    return replace(otherwise, **changed)


def to_query(asked: Asked, model: str) -> str:
    """The query of a link to what these values give with a model of this name: all of them, so that the link
    stays true where defaults change."""
    values = {NAMES[field.name]: getattr(asked, field.name) for field in fields(Asked)}
    values["guidance"] = f"{asked.guidance:g}"
    return urlencode({"model": model, **{name: value for name, value in values.items() if value != ""}})


def from_query(query: Mapping[str, str], otherwise: Asked) -> Asked | None:
    """What a link asks for; None where the query names none of the values. Names that are not of this page
    are left to others. Raises UserError."""
    values = {field: query[name] for field, name in NAMES.items() if name in query}
    if not values:
        return None
    # A link holds all values but the empty ones.
    return read_asked(values, replace(otherwise, prompt="", class_name=""))


def _check_range(name: str, value: float, least: float, most: float) -> None:
    check(least <= value <= most, name, value, f"{least:,} to {most:,.0f}")


def _number(value: object, field: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"the {_WORDS[field]} is {str(value)[:40]!r}; expected a number")
    return number


def _whole(value: object, field: str) -> int:
    number = _number(value, field)
    if number != int(number):
        raise UserError(f"the {_WORDS[field]} is {number:g}; expected a whole number")
    return int(number)
