"""The JSON of one document: an object with its elements, each a text or the path of an image."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from causalfusion.errors import UserError

EXAMPLE = '{"elements": [{"text": "a red circle"}, {"image": "1.png"}]}'


class Part(NamedTuple):
    """An element of a document as its line has it."""

    kind: Literal["text", "image"]
    value: str
    """The text, or the path of the image as it is written."""


def parse_document(line: bytes, where: str) -> tuple[Part, ...]:
    """The elements of this line. Raises UserError, one line that begins with `where`, for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # The decoder was given one line, so its line number is always 1: only the column is of use.
        reason = (
            f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        )
        raise UserError(f"{where} is not valid JSON ({reason}); expected {EXAMPLE}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is a JSON {type(record).__name__}; expected {EXAMPLE}")
    unknown = sorted(set(record) - {"elements"})
    if unknown:
        raise UserError(
            f"{where} has the unknown key {_shown(unknown[0])}; expected `elements` alone: {EXAMPLE}"
        )
    elements = record.get("elements")
    if not isinstance(elements, list):
        what = f"`elements` is {_shown(elements)}" if "elements" in record else "has no `elements`"
        raise UserError(f"{where}: {what}; expected a list of texts and images: {EXAMPLE}")
    if not elements:
        raise UserError(f"{where}: the document is empty; expected texts and images: {EXAMPLE}")
    return tuple(_part(element, f"{where}: element {n}") for n, element in enumerate(elements, 1))


def _part(element: object, where: str) -> Part:
    """A text or an image from its JSON. Raises UserError, its message beginning with `where`."""
    kind = next(iter(element)) if isinstance(element, dict) and len(element) == 1 else None
    if not isinstance(element, dict) or (kind != "text" and kind != "image"):
        expected = '{"text": "..."} or {"image": "path of an image"}'
        raise UserError(f"{where} is {_shown(element)}; expected {expected}")
    value = element[kind]
    if not isinstance(value, str) or not value.strip():
        expected = "words" if kind == "text" else "the path of an image file"
        raise UserError(f"{where}: `{kind}` is {_shown(value)}; expected {expected}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can write it, no tokenizer reads it
        raise UserError(f"{where}: `{kind}` is not valid Unicode ({error.reason}); repair it") from error
    return Part(kind, value)


def _shown(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
