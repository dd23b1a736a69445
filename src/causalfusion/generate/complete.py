"""Going on with texts and images: after any prompt of them, the elements that the model takes to come next.

Every element is generated from the whole of what stands before it: its context is computed anew (one pass),
each given or finished image in it as one AR step of clean tokens, each element as it was handed out (pixels
in range, a text in the tokenizer's own ids). So a document that was completed in two calls is the one that
was completed in one.

Shape letters: C, H, W channels and pixels, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.documents import Element, Image, ImageToCome, Text
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.prompts import check_room, prompt_ids, text_length
from causalfusion.generate.rank import best_of
from causalfusion.generate.tokens import StepEvent
from causalfusion.generate.write import choose_tokens, restrict_to
from causalfusion.rng import derive_generator, derive_seed

MAX_ELEMENTS = 16
"""Where nobody says how many: a model that never ends its document is ended."""


class Listener:
    """Hears of the elements while they come into being; this one does nothing about it."""

    def begin(self, kind: Literal["text", "image"]) -> None:
        """An element of this kind is begun."""

    def piece(self, text: str) -> None:
        """The text in work has grown by this."""

    def diffusion_step(self, event: StepEvent) -> None:
        """The image in work has come so far."""

    def end(self) -> None:
        """The element in work is done."""


@dataclass
class _Story:
    """The document so far."""

    pipeline: Pipeline
    tokenizer: Tokenizer
    elements: list[Element] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    """(1, L, P) clean tokens each."""

    @property
    def tokens(self) -> Tensor | None:
        return torch.cat(self.images) if self.images else None

    @property
    def label(self) -> Tensor:
        return self.pipeline.null_labels(1)

    def add(self, element: str | Tensor) -> None:
        if isinstance(element, str):
            ids = prompt_ids(element, self.tokenizer, self.pipeline.model.config)
            self.elements.append(Text(ids))
        else:
            tokens = self.pipeline.codec.encode_tokens(element[None].to(self.pipeline.device), None)
            self.elements.append(Image(len(self.images)))
            self.images.append(tokens)


def complete(
    pipeline: Pipeline,
    prompt: Sequence[str | Tensor],
    sample: SampleConfig,
    write: WriteConfig | None = None,
    *,
    num_elements: int | None = None,
    seed: int = 0,
    candidates: int = 1,
    listener: Listener | None = None,
) -> list[str | Tensor]:
    """The elements that follow the prompt: texts, and images (C, H, W) in [-1, 1] like those in the prompt.

    Until the model ends the document, or has no room; or, with `num_elements`, that many of them if there is
    room. An image after a text is the best of `candidates` draws, by the model's own judgement.
    """
    write, listener = write or WriteConfig(), listener or Listener()
    if not prompt:
        raise UserError("the prompt is empty; expected at least one text or image to go on from")
    story = _Story(pipeline, pipeline.with_text())
    for element in prompt:
        story.add(element)
    more_images = len(story.images) < pipeline.model.config.max_images
    check_room(story.elements, pipeline.model.config, 2 if more_images else 3)
    made: list[str | Tensor] = []
    while len(made) < (MAX_ELEMENTS if num_elements is None else num_elements):
        kind = _next_kind(story, write, seed, may_end=num_elements is None)
        if kind == "end":
            break
        listener.begin(kind)
        if kind == "text":
            made.append(_write(story, write, seed, listener))
        else:
            made.append(_draw(story, sample, seed, listener, candidates))
        listener.end()
    return made


Kind = Literal["text", "image", "end"]


def _next_kind(story: _Story, write: WriteConfig, seed: int, *, may_end: bool) -> Kind:
    """The next element: the model's choice among those for which there is room."""
    model, markers = story.pipeline.model.config, story.tokenizer.markers
    room = model.max_text_tokens - text_length(story.elements)
    kinds: dict[Kind, int] = {"end": markers.end} if may_end else {}
    if room >= 3:
        kinds["text"] = markers.text
    if room >= 2 and len(story.images) < model.max_images:
        kinds["image"] = markers.image
    if not kinds or list(kinds) == ["end"]:
        return "end"
    logits = story.pipeline.read(story.label, [story.elements], story.tokens).text_logits
    assert logits is not None, "documents have text logits"
    generator = derive_generator(seed, "kind", len(story.elements))
    chosen = choose_tokens(
        restrict_to(logits, list(kinds.values())), write, torch.rand(1, generator=generator).to(logits.device)
    )
    return next(kind for kind, token in kinds.items() if token == int(chosen))


def _write(story: _Story, write: WriteConfig, seed: int, listener: Listener) -> str:
    stream = story.tokenizer.decode_stream()
    documents, places = [[*story.elements, Text(open=True)]], [len(story.elements)]

    def hear(_: int, token: int) -> None:
        listener.piece(stream.feed(token))

    (ids,) = story.pipeline.write(story.label, documents, story.tokens, write, seed, places, hear)
    listener.piece(stream.flush())
    text = story.tokenizer.decode(ids)
    story.elements.append(Text(tuple(story.tokenizer.encode(text))))
    return text


def _draw(story: _Story, sample: SampleConfig, seed: int, listener: Listener, candidates: int) -> Tensor:
    """An image after the document so far; its noise is that of this place in the document. After a text it
    is the one of the candidates for which the model finds that text the likeliest."""
    place, pipeline = len(story.elements), story.pipeline

    documents = [[*story.elements, ImageToCome()]]

    def draw(seed: int) -> Tensor:
        tokens = pipeline.generate_after(
            story.label, documents, story.tokens, sample, seed=seed, watch=listener.diffusion_step
        )
        return pipeline.codec.decode_tokens(tokens)

    last = story.elements[-1]
    text = story.tokenizer.decode(list(last.ids)) if isinstance(last, Text) else ""
    first_seed = derive_seed(seed, "image", place) if place > 1 else seed
    images = best_of(draw, pipeline, [text], candidates if text.strip() else 1, first_seed)
    image = images[0].cpu()
    story.add(image)
    return image
