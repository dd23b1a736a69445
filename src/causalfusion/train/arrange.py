"""From examples to documents: which comes first, caption or image, and which captions are dropped.

Shape letters: B examples of a batch, K examples that share a document.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causalfusion.codec.tokenizer import MARKERS_OF_EXAMPLE
from causalfusion.config import RunConfig
from causalfusion.documents import Document, Element, Image, Text
from causalfusion.errors import UserError
from causalfusion.train.draws import Arrangement, TextDraw


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


def caption_limit(max_text_tokens: int, examples_per_sequence: int) -> int:
    """Tokens of a caption for which a sequence has room, beside the markers."""
    # 1 is left for the end marker.
    limit = (max_text_tokens - 1) // examples_per_sequence - MARKERS_OF_EXAMPLE
    if limit < 1:
        least = (MARKERS_OF_EXAMPLE + 1) * examples_per_sequence + 1
        raise UserError(
            f"model.max_text_tokens is {max_text_tokens}; expected at least {least} "
            f"for {examples_per_sequence} captions with their markers"
        )
    return limit


def check_room_for_images(config: RunConfig) -> None:
    """Raises UserError for a model whose documents hold fewer images than a sequence of the run."""
    count = config.text.examples_per_sequence
    if config.model.max_images < count:
        raise UserError(
            f"model.max_images is {config.model.max_images}; expected at least {count}, as "
            "text.examples_per_sequence says"
        )
