"""From what a user says to documents: prompts, and the context that generation goes on from.

Shape letters: B rows, N images in the documents, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from causalfusion.codec.tokenizer import Markers, Tokenizer
from causalfusion.config import ModelConfig
from causalfusion.documents import Document, Element, Image, ImageToCome, Text
from causalfusion.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Prompts:
    """Documents to go on from, one for each row."""

    documents: Sequence[Document]
    markers: Markers
    tokens: Tensor | None = None
    """(N, L, P) clean tokens, in raster order, of the images in the documents."""
    image_context: Literal["clean", "noised"] = "clean"

    def without_text(self) -> Prompts:
        """The same with every text empty: what guidance guides away from."""
        emptied = [
            [Text(open=e.open) if isinstance(e, Text) else e for e in document] for document in self.documents
        ]
        return Prompts(emptied, self.markers, self.tokens, self.image_context)


def image_documents(prompts: Sequence[str], tokenizer: Tokenizer, model: ModelConfig) -> list[Document]:
    """Text, then an image to come."""
    return [[Text(prompt_ids(prompt, tokenizer, model)), ImageToCome()] for prompt in prompts]


def prompt_ids(prompt: str, tokenizer: Tokenizer, model: ModelConfig) -> tuple[int, ...]:
    """The prompt's token ids; an empty one, or one for which the model has no room, is refused."""
    ids = tuple(tokenizer.encode(prompt)) if prompt.strip() else ()
    if not ids:
        raise UserError("the prompt is empty; expected some words: say what the image is to show")
    room = model.max_text_tokens - 3  # the text's two markers, and the image's first
    if len(ids) > room:
        raise UserError(
            f"the prompt has {len(ids)} tokens; this model has room for {room}: shorten it "
            f"({prompt[:40]!r}...)"
        )
    return ids


def given_documents(
    given: Sequence[Sequence[str | T]], last: Element, tokenizer: Tokenizer, model: ModelConfig, more: int
) -> tuple[list[Document], list[T]]:
    """(documents of these texts and images, each followed by `last`; their images in order). Raises UserError
    for one that leaves no room for itself and `more` text tokens."""
    documents, images = list[Document](), list[T]()
    for elements in given:
        document = list[Element]()
        for element in elements:
            if isinstance(element, str):
                document.append(Text(prompt_ids(element, tokenizer, model)))
            else:
                document.append(Image(len(images)))
                images.append(element)
        documents.append([*document, last])
        check_room(documents[-1], model, more)
    return documents, images


def check_room(document: Document, model: ModelConfig, more: int) -> None:
    """Refuse a document with which `more` text tokens, or its images, do not fit into the model."""
    images = sum(isinstance(e, Image | ImageToCome) for e in document)
    if images > model.max_images:
        raise UserError(f"the prompt has {images} images; this model has room for {model.max_images}")
    room = model.max_text_tokens - more
    if text_length(document) > room:
        raise UserError(
            f"the prompt has {text_length(document)} text tokens, markers included; this model has room for "
            f"{room} before what follows: shorten it"
        )


def text_length(document: Document) -> int:
    """Text tokens of a document, markers included."""
    lengths = {Image: 2, ImageToCome: 1}
    return sum(len(e.ids) + 2 - e.open if isinstance(e, Text) else lengths[type(e)] for e in document)
