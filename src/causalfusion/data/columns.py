"""Columns of tables of images: which of them hold the pictures, the labels and the captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causalfusion.data.labels import Classes, named_classes, numbered_classes
from causalfusion.errors import UserError, printable

_GUESSES = {
    "image": ("image", "img", "jpg", "png", "picture", "pixel_values"),
    "label": ("label", "labels", "fine_label", "class", "cls"),
    "caption": ("caption", "captions", "text", "prompt"),
}
_OPTIONS = {kind: f"data.{kind}_column" for kind in _GUESSES}


@dataclass(frozen=True)
class Columns:
    """Names of columns; empty: guessed."""

    image: str = ""
    label: str = ""
    caption: str = ""

    @property
    def named(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.image, self.label, self.caption) if name]


GUESSED = Columns()


def choose_columns(names: Sequence[str], holding: Sequence[str], given: Columns, where: str) -> Columns:
    """The columns to read of a table with these names, of which `holding` can hold pictures: those that are
    given, else those with a customary name, else, of images, the only one that holds them. Raises
    UserError."""
    found = {}
    for kind, guesses in _GUESSES.items():
        name = getattr(given, kind)
        if name and name not in names:
            raise UserError(
                f"{_OPTIONS[kind]} is {name!r}, which {printable(where)} has not; expected one of "
                f"{', '.join(map(printable, names))}"
            )
        found[kind] = name or next((guess for guess in guesses if guess in names), "")
    if not given.image and found["image"] not in holding:
        found["image"] = holding[0] if len(holding) == 1 else ""
    if found["image"] not in holding:
        raise UserError(
            f"{printable(where)}: no column of pictures ({', '.join(map(printable, names))}); expected one "
            "of bytes, or of {bytes, path}: name it with data.image_column"
        )
    return Columns(**found)


def classes_of_column(labels: list[Any], column: str, where: str, listed: Sequence[str]) -> Classes | None:
    """The classes of a column of labels, numbers (named by `listed`, where that is not empty) or names; None
    for no labels. Raises UserError."""
    if not labels:
        return None
    kinds = {type(label) for label in labels}
    if kinds not in ({int}, {str}):
        raise UserError(
            f"{printable(where)}: the column {column} holds "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}; expected whole numbers, or names, in "
            "every row: name another with data.label_column"
        )
    if kinds == {str}:
        return named_classes(labels)
    return numbered_classes(labels, printable(where), listed, "the data set's features")


def texts_of_row(value: Any, column: str, name: str) -> tuple[str, ...]:
    """The captions in a row, a text or a list of texts; `name`: the row's in messages. Raises UserError."""
    texts = [value] if isinstance(value, str) else value
    fits = isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)
    if not fits:
        raise UserError(
            f"{name}: the column {column} is {str(value)[:40]!r}; expected a text, or a list of texts, in "
            "every row"
        )
    return tuple(text.strip() for text in texts)
