"""Several images in a row: the images of a batch, which have numbers of tokens of their own, as fewer and
longer rows (FiT 2402.12376, section 3; FiTv2 2410.13925).

A row holds `[class tokens of its images][clean tokens of its images][noised tokens of its images]`, noised
copies one behind another. Tokens see those of their own image alone: each has an owner, its image's number in
the row. Which row an image stands in changes nothing that is computed of it.

Shape letters: N images, L tokens of the longest, B rows, I images of a row at most, n image tokens of a row,
v clean tokens of a row, R noised copies of every AR step, C class tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from causalfusion.factorization import Plan
from causalfusion.sequence import (
    Denoising,
    PackedSequence,
    Segment,
    ar_steps_of_copies,
    asked_segment,
    image_segment,
)


def fill_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The images of each row: an image goes into the first row that has room for it, of `budget` tokens."""
    rows: list[list[int]] = []
    room: list[int] = []
    for image, length in enumerate(lengths):
        row = next((number for number, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(budget)
        rows[row].append(image)
        room[row] -= length
    return rows


@dataclass(frozen=True)
class Packing:
    """Where N images stand in B rows; all tensors are int64, and -1 is padding."""

    images: Tensor
    """(B, I): each image of a row."""
    tokens: Tensor
    """(B, n): each token of a row, by its place among all N * L."""
    owner: Tensor
    """(B, n): its image's number in the row."""
    context: Tensor
    """(B, v): each clean token of a row, by its place among all N * L."""
    context_owner: Tensor
    """(B, v)."""
    back: Tensor
    """(N, L): each token of an image, by its place among all B * n; for padding that of the last."""

    def to(self, device: torch.device) -> Packing:
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})

    def of_tokens(self, values: Tensor, copies: int = 1) -> Tensor:
        """Values (N, R*L, ...) of images as those of rows, (B, R*n, ...)."""
        each = values.unflatten(1, (copies, -1)).transpose(0, 1).flatten(1, 2)
        return torch.cat([of_copy[self.tokens.clamp(min=0)] for of_copy in each], dim=1)

    def of_context(self, values: Tensor) -> Tensor:
        """Values (N, L, ...) of clean tokens as those of rows, (B, v, ...)."""
        return values.flatten(0, 1)[self.context.clamp(min=0)]

    def of_images(self, values: Tensor, copies: int = 1) -> Tensor:
        """Values (B, R*n, ...) of rows as those of images, (N, R*L, ...)."""
        each = values.unflatten(1, (copies, -1)).transpose(0, 1).flatten(1, 2)
        return torch.cat([of_copy[self.back] for of_copy in each], dim=1)

    def grids(self, plan: Plan, index: Tensor) -> Tensor:
        """(B, m, 2): rows and columns of the image of each of these tokens (B, m)."""
        assert plan.grid is not None, "images have grids of their own"
        return plan.grid[index.clamp(min=0) // plan.order.shape[1]]


def arrange_rows(plan: Plan, budget: int, multiple: int = 1) -> Packing:
    """The rows of a plan's images, of up to `budget` image tokens, filled up to multiples of `multiple`."""
    assert plan.lengths is not None, "images have lengths of their own"
    longest, lengths, needed = plan.order.shape[1], plan.lengths, plan.context_lengths
    rows = fill_rows(lengths.tolist(), budget)
    images = _padded([torch.tensor(row) for row in rows])
    tokens, owner = _runs(rows, lengths, longest, multiple)
    context, context_owner = _runs(rows, needed, longest, multiple)
    back = torch.zeros(len(lengths), longest, dtype=torch.int64)
    real = tokens >= 0
    back.view(-1)[tokens[real]] = torch.arange(tokens.numel()).view_as(tokens)[real]
    last = back.gather(1, lengths[:, None] - 1)
    back = torch.where(torch.arange(longest) < lengths[:, None], back, last)
    return Packing(images, tokens, owner, context, context_owner, back)


def _runs(rows: list[list[int]], lengths: Tensor, longest: int, multiple: int) -> tuple[Tensor, Tensor]:
    """(the first tokens of each image of a row, one image behind another; their owners), (B, m) each."""
    counts = lengths.tolist()
    tokens = [torch.cat([image * longest + torch.arange(counts[image]) for image in row]) for row in rows]
    owners = [torch.arange(len(row)).repeat_interleave(lengths[row]) for row in rows]
    return _padded(tokens, multiple), _padded(owners, multiple)


def _padded(rows: list[Tensor], multiple: int = 1) -> Tensor:
    """Packing filled with -1 to the longest one, and to a multiple."""
    filled = pad_sequence(rows, batch_first=True, padding_value=-1)
    return F.pad(filled, (0, -filled.shape[1] % multiple), value=-1)


def pack_rows(
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    noised_tokens: Tensor,
    plan: Plan,
    timesteps: Tensor,
    rows: Packing,
) -> PackedSequence:
    """`sequence.pack_training` for several images in a row: labels (N,), clean (N, L, P) and noised tokens
    (N, R*L, P) in the plan's order, timesteps (N, 1 or R*L)."""
    copies = noised_tokens.shape[1] // plan.order.shape[1]
    clean_step, noised_step = ar_steps_of_copies(plan.ar_step, copies)
    noised = image_segment(
        "noised",
        rows.of_tokens(noised_tokens, copies),
        rows.of_tokens(noised_step, copies),
        rows.of_tokens(plan.places.repeat(1, copies, 1), copies),
        _timesteps(timesteps, rows, copies),
        grid=rows.grids(plan, rows.tokens).repeat(1, copies, 1),
    )
    noised = replace(noised, owner=rows.owner.repeat(1, copies))
    context = _context(class_labels, num_class_tokens, clean_tokens, clean_step, plan, rows)
    return PackedSequence((*context, noised))


def pack_asking_rows(
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    plan: Plan,
    denoising: Denoising,
    rows: Packing,
) -> PackedSequence:
    """`sequence.pack_asking` for several images in a row; `denoising` has a row for each image (N)."""
    copies = denoising.tokens.shape[1] // plan.order.shape[1]
    asked = asked_segment(
        len(rows.tokens),
        rows.of_tokens(plan.ar_step),
        rows.of_tokens(plan.places),
        rows.grids(plan, rows.tokens),
    )
    context = _context(class_labels, num_class_tokens, clean_tokens, plan.ar_step, plan, rows)
    each = denoising.timesteps.expand(-1, denoising.tokens.shape[1])
    of_rows = Denoising(rows.of_tokens(denoising.tokens, copies), rows.of_tokens(each, copies))
    return PackedSequence((*context, replace(asked, owner=rows.owner)), of_rows)


def _context(
    class_labels: Tensor,
    num_class_tokens: int,
    clean_tokens: Tensor,
    ar_step: Tensor,
    plan: Plan,
    rows: Packing,
) -> list[Segment]:
    """[class tokens of a row's images][clean tokens of a row's images, those that one of theirs sees]."""
    slots = torch.arange(rows.images.shape[1], device=rows.images.device)
    owner = torch.where(rows.images >= 0, slots, -1).repeat_interleave(num_class_tokens, dim=1)
    segments = [
        Segment(
            "class", "clean", torch.zeros_like(owner), class_labels[rows.images.clamp(min=0)], owner=owner
        )
    ]
    if rows.context.shape[1]:
        clean = image_segment(
            "clean",
            rows.of_context(clean_tokens),
            rows.of_context(ar_step),
            rows.of_context(plan.places),
            grid=rows.grids(plan, rows.context),
        )
        segments.append(replace(clean, owner=rows.context_owner))
    return segments


def _timesteps(timesteps: Tensor, rows: Packing, copies: int) -> Tensor:
    """(B, I) where an image has one and there are fewer images than tokens in a row, else (B, R*n)."""
    tokens = copies * rows.tokens.shape[1]
    if timesteps.shape[1] == 1 and rows.images.shape[1] < tokens:
        return timesteps[:, 0][rows.images.clamp(min=0)]
    each = timesteps.expand(-1, copies * rows.back.shape[1])
    return rows.of_tokens(each, copies)
