"""Packed sequences: rows of tokens that each carry a kind, a role and an AR step.

A sequence is a tuple of segments; a segment is a run of tokens of one kind and one role. Attention depends on
roles and AR steps alone (and on owners, where a row holds several images), not on the order of segments. The
functions at the end build the sequences of images, `documents.py` those of texts and images, `rows.py` those
of several images in a row.

Shape letters: B rows, each an image, I images of a row that holds several, n tokens of a segment, T packed
length, L image tokens, V context tokens, P token dimension. An AR step tensor has leading size 1 (one plan
for the batch) or B (one per image).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from causalfusion.factorization import Plan

Kind = Literal["class", "text", "image"]
Role = Literal["clean", "noised", "asked"]
"""Tokens that are not clean see those of their own AR step. An asked token is a learned mask token in the
place of one that is to be predicted."""


EVERYWHERE = 2**30
"""The text place of tokens that have none; it lies within the window of every text token."""


@dataclass(frozen=True)
class Segment:
    """A run of n tokens of one kind and one role."""

    kind: Kind
    role: Role
    ar_step: Tensor
    """(1 or B, n) int64."""
    values: Tensor
    """class: labels (B,) int64, or (B, I) of the I images of a row; text: token ids (B, n) int64; image:
    tokens (B, n, P); asked: (B, n, 0)."""
    places: Tensor | None = None
    """image: (1 or B, n, 2) int64, row and column of each token; text: (1 or B, n) int64, index into the text
    of its row."""
    timesteps: Tensor | None = None
    """Noised tokens: timestep that the model is told, (B, 1 or n); with owners also (B, I), I < n, one for
    each image."""
    image_index: Tensor | None = None
    """image: index, (1 or B, n) int64, of the token's image among those of its row; None: all 0."""
    grid: Tensor | None = None
    """image: rows and columns of the token's image, (1 or B, 2) int64, or (B, n, 2) of each token's; None:
    those of the model's grid."""
    text_places: Tensor | None = None
    """text, image: (1 or B, n) int64, its place among the text positions of its row, where all tokens of an
    image hold one place; None: not known."""
    owner: Tensor | None = None
    """(B, n) int64: which of the images of a row, that see nothing of each other, the token belongs to; -1
    for padding. None: all tokens of a row see each other, as their roles and AR steps let them."""
    asks_next: bool = False
    """class, clean image tokens: each token's output is the condition of the next image token, that of the
    class tokens the last one's."""
    read: bool = True
    """text: a head predicts what follows its tokens; off where nothing is asked of it."""

    @property
    def num_tokens(self) -> int:
        return self.ar_step.shape[1]

    @property
    def predicts(self) -> bool:
        """True if a head reads its tokens: text predicts the next token, noised tokens their denoising; asked
        ones, and those that ask for the next, give the per-token head its conditions."""
        text = self.kind == "text" and self.read
        return text or self.timesteps is not None or self.role == "asked" or self.asks_next

    def of_tokens(self, values: Tensor) -> Tensor:
        """(B, 1 or n, D): the value of each token, of one for a row, of one for each of its images (B, I, D),
        or of its own."""
        if self.owner is None or values.shape[1] in (1, self.num_tokens):
            return values
        return take_rows(values, self.owner.clamp(min=0))


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, n, D): of values (B, r, D) those at the indices (B, n) of each row."""
    return values[torch.arange(len(values), device=index.device)[:, None], index]


@dataclass(frozen=True)
class Denoising:
    """The tokens that a per-token head is to denoise, under the conditions that a sequence gives it."""

    tokens: Tensor
    """(B, R*n, P) noised tokens: R copies of those that are asked for, one behind another."""
    timesteps: Tensor
    """(B, 1 or R*n)."""


@dataclass(frozen=True)
class PackedSequence:
    segments: tuple[Segment, ...]
    denoising: Denoising | None = None
    """None: no per-token head, or one that is called by itself."""

    @cached_property
    def clean(self) -> Tensor:
        """(T,) bool: True for tokens of the clean role."""
        device = self.segments[0].ar_step.device  # made there: a GPU would be waited for by a copy
        return torch.cat(
            [torch.full((s.num_tokens,), s.role == "clean", device=device) for s in self.segments]
        )

    @cached_property
    def ar_step(self) -> Tensor:
        """(1 or B, T) int64: AR step of each token."""
        rows = max(s.ar_step.shape[0] for s in self.segments)
        return torch.cat([s.ar_step.expand(rows, -1) for s in self.segments], dim=1)

    @cached_property
    def owner(self) -> Tensor | None:
        """(B, T) int64: owner of each token; None: a row has but one."""
        owners = [s.owner for s in self.segments if s.owner is not None]
        return torch.cat(owners, dim=1) if owners else None

    @cached_property
    def text_places(self) -> Tensor:
        """(1 or B, T) int64: text place of each token; EVERYWHERE for those that have none."""
        parts = [
            torch.full_like(s.ar_step, EVERYWHERE) if s.text_places is None else s.text_places
            for s in self.segments
        ]
        rows = max(part.shape[0] for part in parts)
        return torch.cat([part.expand(rows, -1) for part in parts], dim=1)

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(s.num_tokens for s in self.segments)

    @property
    def first_output(self) -> int:
        """Position of the first token that a head reads; earlier tokens need no output of the last layer."""
        start = 0
        for segment in self.segments:
            if segment.predicts:
                break
            start += segment.num_tokens
        return start

    @property
    def boundaries(self) -> list[int]:
        """Positions at which segments begin and end: 0, ..., T."""
        edges = [0]
        for segment in self.segments:
            edges.append(edges[-1] + segment.num_tokens)
        return edges


def class_segment(class_labels: Tensor, num_class_tokens: int) -> Segment:
    """The class condition: clean tokens of AR step 0, which attend to each other; all tokens attend to
    them."""
    ar_step = torch.zeros(1, num_class_tokens, dtype=torch.int64, device=class_labels.device)
    return Segment("class", "clean", ar_step, class_labels)


def asked_segment(num_rows: int, ar_step: Tensor, places: Tensor, grid: Tensor | None = None) -> Segment:
    """Mask tokens at `places` (1 or B, n, 2), for B = `num_rows`."""
    nothing = torch.empty(num_rows, ar_step.shape[1], 0, device=ar_step.device)
    return Segment("image", "asked", ar_step, nothing, places, grid=grid)


def text_segment(ids: Tensor, ar_step: Tensor, places: Tensor, text_places: Tensor | None = None) -> Segment:
    """Text tokens (B, n), clean, each in an AR step of its own; `ar_step` is (1 or B, n). Without images
    before it, a token's index into the text of its row, `places`, is its text place too."""
    text_places = places if text_places is None else text_places
    return Segment("text", "clean", ar_step, ids, places, text_places=text_places)


def image_segment(
    role: Role,
    tokens: Tensor,
    ar_step: Tensor,
    places: Tensor,
    timesteps: Tensor | None = None,
    image_index: Tensor | None = None,
    grid: Tensor | None = None,
    text_places: Tensor | None = None,
) -> Segment:
    """Image tokens (B, n, P) at `places` (1 or B, n, 2); noised ones with their timesteps (B, 1 or n)."""
    return Segment(
        "image", role, ar_step, tokens, places, timesteps, image_index, grid, text_places=text_places
    )


def ar_steps_of_copies(ar_step: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """(AR steps of clean tokens (1 or B, L), of noised tokens (1 or B, R*L)) for R noised copies of every AR
    step.

    The copies have AR steps of their own, without clean tokens between them, so that the mask separates them.
    """
    return ar_step * copies, torch.cat([(ar_step - 1) * copies + 1 + r for r in range(copies)], dim=1)


def pack_training(
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    noised_tokens: Tensor,
    plan: Plan,
    timesteps: Tensor,
    length_multiple: int = 1,
) -> PackedSequence:
    """`[class tokens][clean tokens of κ_1..κ_{S-1}][noised tokens of κ_1..κ_S]`.

    `clean_tokens` (B, L, P) and `noised_tokens` (B, R*L, P) stand in the plan's order. R > 1 gives every AR
    step R noised copies, each at its own noise level. `timesteps` (B, 1 or R*L).

    With one split per image, V is the length of the longest context; shorter ones are padded with clean
    tokens of their last AR step, to which none of their noised tokens attends. More such padding makes the
    packed length a multiple of `length_multiple`, so that it takes few values.
    """
    copies = noised_tokens.shape[1] // plan.order.shape[1]
    num_context = _context_length(plan, num_class_tokens + noised_tokens.shape[1], length_multiple)
    context = slice(0, num_context)
    clean_step, noised_step = ar_steps_of_copies(plan.ar_step, copies)
    places, grid = plan.places, plan.grid
    noised_places = places.repeat(1, copies, 1)
    noised = image_segment("noised", noised_tokens, noised_step, noised_places, timesteps, grid=grid)
    segments = [class_segment(class_labels, num_class_tokens)]
    if num_context:
        clean = clean_tokens[:, context]
        segments.append(image_segment("clean", clean, clean_step[:, context], places[:, context], grid=grid))
    return PackedSequence((*segments, noised))


def pack_asking(
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    plan: Plan,
    denoising: Denoising,
    length_multiple: int = 1,
) -> PackedSequence:
    """`[class tokens][clean tokens of κ_1..κ_{S-1}][mask tokens of κ_1..κ_S]`: `pack_training` for a
    per-token head, whose noised tokens stay outside the transformer."""
    num_context = _context_length(plan, num_class_tokens + plan.order.shape[1], length_multiple)
    segments, places = [class_segment(class_labels, num_class_tokens)], plan.places
    if num_context:
        context = slice(0, num_context)
        clean, steps = clean_tokens[:, context], plan.ar_step[:, context]
        segments.append(image_segment("clean", clean, steps, places[:, context], grid=plan.grid))
    asked = asked_segment(len(class_labels), plan.ar_step, places, plan.grid)
    return PackedSequence((*segments, asked), denoising)


def pack_next(
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    plan: Plan,
    denoising: Denoising | None = None,
) -> PackedSequence:
    """`[class tokens][clean tokens but the last]`: the output of each is the condition of the token that
    follows it, as in a language model (LatentLM)."""
    condition = replace(class_segment(class_labels, num_class_tokens), asks_next=True)
    rest = slice(0, plan.order.shape[1] - 1)
    steps, places = plan.ar_step[:, rest], plan.places[:, rest]
    clean = image_segment("clean", clean_tokens[:, rest], steps, places, grid=plan.grid)
    return PackedSequence((condition, replace(clean, asks_next=True)), denoising)


def pack_bidirectional(
    class_labels: Tensor,
    num_class_tokens: int,
    known_tokens: Tensor,
    known_places: Tensor,
    asked_places: Tensor,
    denoising: Denoising | None = None,
    grid: Tensor | None = None,
) -> PackedSequence:
    """`[class tokens][known tokens][mask tokens]`, which all see each other: none has the clean
    role, and all have one AR step (MAR). Known tokens (B, n, P), masks at `asked_places` (1 or B, m, 2)."""
    rows, device = class_labels.shape[0], class_labels.device

    def one_step(count: int) -> Tensor:
        return torch.ones(1, count, dtype=torch.int64, device=device)

    segments = [Segment("class", "noised", one_step(num_class_tokens), class_labels)]
    if known_tokens.shape[1]:
        steps = one_step(known_tokens.shape[1])
        segments.append(image_segment("noised", known_tokens, steps, known_places, grid=grid))
    asked = asked_segment(rows, one_step(asked_places.shape[1]), asked_places, grid)
    return PackedSequence((*segments, asked), denoising)


def _context_length(plan: Plan, others: int, multiple: int) -> int:
    """V, or more, so that with the `others` it is a multiple, as far as there are clean tokens. If each image
    has its own split, all clean tokens: the longest context of other processes is unknown here."""
    num_tokens, needed = plan.order.shape[1], plan.num_context_tokens
    if multiple == 1:
        return needed
    if len(plan.ar_step) > 1:
        return num_tokens
    return min(num_tokens, needed + -(others + needed) % multiple)
