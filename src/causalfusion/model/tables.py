"""More rows in a model's tables: classes and words that it did not have.

Shape letters: K classes, V ids of the vocabulary, D numbers in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from causalfusion.config import NUM_MARKERS

CLASS_TABLES = ("class_embedding.table.weight", "class_embedding.weight")
"""The table of classes, of which a model has one or none: K rows and that of the null class."""
WORD_TABLES = ("text_embedding.weight", "text_out.weight")
"""Tables with a row for each id of the vocabulary, the markers behind the words."""


def class_table_of(names: Iterable[str]) -> str | None:
    """The name of the table of classes among these weights; None for a model that ignores classes."""
    return next((name for name in names if name in CLASS_TABLES), None)


def chosen_classes(table: Tensor, places: Sequence[int], new: Tensor) -> Tensor:
    """(len(places) + 1, D): for each class its row of `table` (K + 1, D), or where its place is -1 the next
    row of `new` (n, D); then the null class."""
    rows, ahead = [], iter(new)
    for place in places:
        rows.append(table[place] if place >= 0 else next(ahead).to(table))
    return torch.stack([*rows, table[-1]])


def with_word(weights: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with one more word behind the others and before the markers; `rows` has its row
    (D,) of each of the WORD_TABLES that the model has."""
    grown = dict(weights)
    for name in WORD_TABLES:
        if name in weights:
            words, markers = weights[name][:-NUM_MARKERS], weights[name][-NUM_MARKERS:]
            grown[name] = torch.cat([words, rows[name][None].to(words), markers])
    return grown
