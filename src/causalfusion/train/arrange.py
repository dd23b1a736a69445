"""From examples to documents: which comes first, caption or image, and which captions are dropped.

Shape letters: B examples of a batch, K examples that share a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from causalfusion.config import TextConfig
from causalfusion.documents import Document, Element, Image, Text
from causalfusion.errors import UserError
from causalfusion.rng import derive_generator

Arrangement = Literal["caption_first", "image_first", "image_only", "text_only"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("caption_first", "image_first", "image_only", "text_only")


@dataclass(frozen=True)
class TextDraw:
    """What is random about an example's text."""

    arrangement: Arrangement
    drop_caption: bool
    """Leave the caption before the image empty."""
    drop_class: bool = False
    """And take the class away with it, as guidance away from both does; for every second such caption."""


def draw_text(config: TextConfig, *, seed: int, sample_indices: Sequence[int]) -> tuple[TextDraw, ...]:
    """The draws for these places of the sample stream: functions of (seed, place)."""
    cumulative = torch.tensor([getattr(config, name) for name in ARRANGEMENTS]).double().cumsum(0)
    draws = []
    for index in sample_indices:
        u, dropped = torch.rand(
            2, dtype=torch.float64, generator=derive_generator(seed, "text", index)
        ).tolist()
        which = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
        arrangement, rate = ARRANGEMENTS[min(which, 3)], config.caption_dropout
        joint = arrangement == "caption_first" and dropped < rate / 2
        draws.append(TextDraw(arrangement, dropped < rate, joint))
    return tuple(draws)


def elements_of(caption: Sequence[int], draw: TextDraw, row: int) -> list[Element]:
    """One example as elements; `row` is its image's."""
    dropped = draw.drop_caption and draw.arrangement == "caption_first"
    text = Text((), learn=False) if dropped else Text(tuple(caption))
    image = Image(row)
    arranged: dict[Arrangement, list[Element]] = {
        "caption_first": [text, image],
        "image_first": [image, text],
        "image_only": [image],
        "text_only": [text],
    }
    return arranged[draw.arrangement]


def documents_of(
    captions: Sequence[Sequence[int]], draws: Sequence[TextDraw], examples_per_sequence: int
) -> list[Document]:
    """B / K documents. Images are numbered in the order of their examples, those that are not used left
    out (`used_images`)."""
    row, elements = 0, []
    for caption, draw in zip(captions, draws, strict=True):
        elements.append(elements_of(caption, draw, row))
        row += draw.arrangement != "text_only"
    groups = range(0, len(elements), examples_per_sequence)
    return [
        [e for example in elements[start : start + examples_per_sequence] for e in example]
        for start in groups
    ]


def used_images(draws: Sequence[TextDraw]) -> Tensor:
    """(N,) the examples whose images stand in a document."""
    return torch.tensor([i for i, d in enumerate(draws) if d.arrangement != "text_only"], dtype=torch.int64)


def seen_by_text(draws: Sequence[TextDraw], examples_per_sequence: int) -> Tensor:
    """(B,) bool: images that a text of their document follows."""
    seen = []
    for start in range(0, len(draws), examples_per_sequence):
        group = draws[start : start + examples_per_sequence]
        for place, draw in enumerate(group):
            later = any(d.arrangement != "image_only" for d in group[place + 1 :])
            seen.append(draw.arrangement == "image_first" or later)
    return torch.tensor(seen)


def caption_limit(max_text_tokens: int, examples_per_sequence: int) -> int:
    """Tokens of a caption for which a sequence has room, beside the markers."""
    limit = (max_text_tokens - 1) // examples_per_sequence - 4
    if limit < 1:
        raise UserError(
            f"model.max_text_tokens is {max_text_tokens}; expected at least {5 * examples_per_sequence + 1} "
            f"for {examples_per_sequence} captions with their markers"
        )
    return limit
