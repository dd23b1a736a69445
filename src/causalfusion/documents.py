"""Documents: texts and images in any order as one packed sequence.

A document is a list of elements. Its text tokens, including the markers of texts and images, are one stream,
each in an AR step of its own; an image takes as many AR steps as its plan has, between its markers. Because
the mask depends on roles and AR steps alone, segments may have any order. Those of a batch are

    [class][clean tokens of all images][text of all elements][noised tokens of all images]

whatever the order of elements in each document. Shorter rows are padded with clean tokens in an AR step after
all others, which no other token attends to.

Shape letters: B documents, N images of the batch, I images of a document at most, n text tokens, L image
tokens, R noised copies of every AR step, P token dimension, S AR steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.elements import Document, Element, Image, ImageToCome, Text
from causalfusion.factorization import UNSEEN, Plan, places_of
from causalfusion.sequence import (
    Denoising,
    PackedSequence,
    Role,
    Segment,
    ar_steps_of_copies,
    class_segment,
    image_segment,
    text_segment,
)

__all__ = [
    "NO_TARGET", "UNSEEN", "Document", "Element", "Image", "ImageToCome", "Layout", "Text", "images_of",
    "lay_out", "pack_asking_documents", "pack_context", "pack_documents",
]  # fmt: skip

NO_TARGET = -100
"""The target of tokens that predict nothing; ignored by `cross_entropy`."""


@dataclass(frozen=True)
class Layout:
    """The tokens and AR steps of B documents; all tensors are int64."""

    text_ids: Tensor
    """(B, n): text tokens, padded with 0."""
    text_ar_step: Tensor
    """(B, n): AR step of each text token; UNSEEN for padding."""
    text_targets: Tensor
    """(B, n): the token that each text token has to predict, or NO_TARGET."""
    text_lengths: Tensor
    """(B,): number of text tokens."""
    image_row: Tensor
    """(B, I): index of each image into the batch's N images; -1 for none."""
    image_base: Tensor
    """(B, I): the AR step before the image's first; UNSEEN for none."""
    next_ar_step: Tensor
    """(B,): the AR step after the document's last."""
    read: bool = True
    """A head predicts what follows text tokens."""

    def to(self, device: torch.device) -> Layout:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def filled(self, num_text: int) -> Layout:
        """This layout with texts padded to at least `num_text` tokens."""
        missing = num_text - self.text_ids.shape[1]
        if missing <= 0:
            return self
        values, pad = (
            {"text_ids": 0, "text_ar_step": UNSEEN, "text_targets": NO_TARGET},
            torch.nn.functional.pad,
        )
        rows = {n: pad(getattr(self, n), (0, missing), value=value) for n, value in values.items()}
        return replace(self, **rows)

    @property
    def text_place_of_images(self) -> Tensor:
        """(B, I): the place of each image among the text positions of its row, of which it holds one."""
        text_before = (self.text_ar_step[:, None] <= self.image_base[:, :, None]).sum(2)
        return text_before + torch.arange(self.image_base.shape[1], device=text_before.device)

    @property
    def place_of_image(self) -> Tensor:
        """(images used,): b * I + i of each image in a document, in the order of their rows."""
        rows = self.image_row.flatten()
        places = (rows >= 0).nonzero()[:, 0]
        return places[rows[places].argsort()]


class _Row:
    """A document that is being laid out."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ar_step: list[int] = []
        self.targets: list[int] = []
        self.images: list[tuple[int, int]] = []
        self.next_ar_step = 1

    def token(self, token: int, learn: bool = True) -> None:
        """Add a text token. It is the target of the text token before it; after an image it is no target."""
        if learn and self.ar_step and self.ar_step[-1] == self.next_ar_step - 1:
            self.targets[-1] = token
        self.ids.append(token)
        self.targets.append(NO_TARGET)
        self.ar_step.append(self.next_ar_step)
        self.next_ar_step += 1

    def element(self, element: Element, markers: Markers, ar_steps: Sequence[int], learn: bool) -> None:
        """Add an element with its markers; `learn` makes its begin marker a target."""
        if isinstance(element, Text):
            self.token(markers.text, learn)
            for token in element.ids:
                self.token(token, element.learn)
            if not element.open:
                self.token(markers.text_end, element.learn)
        elif isinstance(element, ImageToCome):
            self.token(markers.image, learn)
        else:
            self.token(markers.image, learn)
            self.images.append((element.row, self.next_ar_step - 1))
            self.next_ar_step += ar_steps[element.row]
            self.token(markers.image_end)

    def end_with_image(self) -> None:
        """Leave out the text tokens behind the last image."""
        if self.images:
            count = sum(step <= self.images[-1][1] for step in self.ar_step)
            self.ids, self.ar_step, self.targets = (
                self.ids[:count],
                self.ar_step[:count],
                self.targets[:count],
            )


def lay_out(
    documents: Sequence[Document],
    markers: Markers,
    ar_steps: Sequence[int],
    *,
    ended: bool | Sequence[bool] = False,
    read: bool = True,
) -> Layout:
    """The layout of documents. `ar_steps` (N,) are the numbers of AR steps of the batch's images, including
    noised copies. Documents that are `ended`, all or some, are complete and get their end marker. Texts are
    padded to the longest one. Without `read`, text is there for images alone: nothing of it is predicted, and
    what stands behind a document's last image is left out."""
    rows = []
    ends = [ended] * len(documents) if isinstance(ended, bool) else ended
    for document, end in zip(documents, ends, strict=True):
        row, learn = _Row(), True
        for element in document:
            row.element(element, markers, ar_steps, learn)
            learn = element.learn if isinstance(element, Text) else True
        if end and read:
            row.token(markers.end, learn)
        if not read:
            row.end_with_image()
        rows.append(row)
    return Layout(
        text_ids=_filled([r.ids for r in rows], 0),
        text_ar_step=_filled([r.ar_step for r in rows], UNSEEN),
        text_targets=_filled([r.targets for r in rows], NO_TARGET),
        text_lengths=torch.tensor([len(r.ids) for r in rows]),
        image_row=_filled([[image for image, _ in r.images] for r in rows], -1),
        image_base=_filled([[base for _, base in r.images] for r in rows], UNSEEN),
        next_ar_step=torch.tensor([r.next_ar_step for r in rows]),
        read=read,
    )


def _filled(rows: list[list[int]], value: int) -> Tensor:
    """Rows padded with `value` to the longest one, as one int64 tensor."""
    longest = max((len(row) for row in rows), default=0)
    filled = [row + [value] * (longest - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64).view(len(rows), longest)


def images_of(layout: Layout, values: Tensor) -> Tensor:
    """Values (N, m, ...) of the batch's images as (B, I, m, ...), by document."""
    return values[layout.image_row.clamp(min=0)]


def _images(
    role: Role,
    layout: Layout,
    tokens: Tensor,
    within: Tensor,
    places: Tensor,
    timesteps: Tensor | None = None,
    grid: Tensor | None = None,
) -> Segment:
    """The segment of all images of each document, one after another.

    `tokens` (N, m, P); `within` (1 or N, m), AR steps counted from 1 inside the image; `places` (1 or N, m,
    2).
    """
    count, length = layout.image_row.shape[1], tokens.shape[1]
    within = within.expand(len(tokens), -1)
    present = (layout.image_row >= 0)[:, :, None]
    steps = torch.where(present, layout.image_base[:, :, None] + images_of(layout, within), UNSEEN + 1)
    if timesteps is not None:
        timesteps = images_of(layout, timesteps)
        if count != 1:
            timesteps = timesteps.expand(-1, -1, length)
        timesteps = timesteps.flatten(1)
    return image_segment(
        role,
        images_of(layout, tokens).flatten(1, 2),
        steps.flatten(1),
        images_of(layout, places.expand(len(tokens), -1, -1)).flatten(1, 2),
        timesteps,
        torch.arange(count, device=tokens.device).repeat_interleave(length)[None],
        grid,
        layout.text_place_of_images.repeat_interleave(length, dim=1),
    )


def _text(layout: Layout) -> Segment:
    places = torch.arange(layout.text_ids.shape[1], device=layout.text_ids.device)[None]
    images_before = (layout.image_base[:, None] < layout.text_ar_step[:, :, None]).sum(2)
    segment = text_segment(layout.text_ids, layout.text_ar_step, places, places + images_before)
    return segment if layout.read else replace(segment, read=False)


def pack_documents(
    layout: Layout,
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    noised_tokens: Tensor,
    plan: Plan,
    timesteps: Tensor,
    image_context: Literal["clean", "noised"] = "clean",
) -> PackedSequence:
    """The training sequence of B documents with N images: clean (N, L, P) and noised (N, R*L, P) tokens in
    the plan's order. `pack_training` is the special case without text.

    It includes the clean tokens of the last AR step too, since later elements attend to them. With
    `image_context = "noised"` (Transfusion) there are no clean tokens: an image is one block, whose noised
    tokens have the clean role, so that later elements attend to them.
    """
    copies, places, grid = noised_tokens.shape[1] // plan.order.shape[1], plan.places, plan.grid
    segments = [class_segment(class_labels, num_class_tokens)]
    if image_context == "noised":
        images = _images("clean", layout, noised_tokens, plan.ar_step, places, timesteps, grid)
        return PackedSequence((*segments, _text(layout), images))
    clean_step, noised_step = ar_steps_of_copies(plan.ar_step, copies)
    clean = _images("clean", layout, clean_tokens, clean_step, places, grid=grid)
    noised_places = places.repeat(1, copies, 1)
    noised = _images("noised", layout, noised_tokens, noised_step, noised_places, timesteps, grid)
    return PackedSequence((*segments, clean, _text(layout), noised))


def pack_asking_documents(
    layout: Layout,
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    plan: Plan,
    denoising: Denoising,
) -> PackedSequence:
    """`pack_documents` for a per-token head: mask tokens stand for the noised ones, which the head denoises
    outside the transformer. `denoising` holds the images of each document one after another, B rows."""
    places, grid = plan.places, plan.grid
    clean = _images("clean", layout, clean_tokens, plan.ar_step, places, grid=grid)
    nothing = clean_tokens[:, :, :0]
    asked = _images("asked", layout, nothing, plan.ar_step, places, grid=grid)
    condition = class_segment(class_labels, num_class_tokens)
    return PackedSequence((condition, clean, _text(layout), asked), denoising)


def pack_context(
    layout: Layout,
    class_labels: Tensor,
    num_class_tokens: int,
    tokens: Tensor,
    grid_width: int,
    image_context: Literal["clean", "noised"] = "clean",
    grid: Tensor | None = None,
) -> PackedSequence:
    """The sequence from which generation starts: documents with their images (N, L, P), in raster order, all
    clean, each in one AR step. A Transfusion model sees them at its lowest noise level, timestep 0."""
    segments = [class_segment(class_labels, num_class_tokens)]
    if layout.image_row.shape[1]:
        order = torch.arange(tokens.shape[1], device=tokens.device)[None]
        timesteps = tokens.new_zeros(len(tokens), 1, dtype=torch.int64) if image_context == "noised" else None
        places = places_of(order, grid_width)
        segments.append(_images("clean", layout, tokens, torch.ones_like(order), places, timesteps, grid))
    return PackedSequence((*segments, _text(layout)))
