"""Two streams through one transformer: image tokens by weights of their own, all others by those of the text;
they meet in attention (BAGEL 2505.14683, LMFusion 2412.15188).

Shape letters: B rows, T packed tokens, D width of the text, E width of image tokens, N heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from causalfusion.factorization import UNSEEN
from causalfusion.sequence import PackedSequence


class Rows(NamedTuple):
    """The tokens of a sequence, each stream's in the sequence's order."""

    text: Tensor
    """(B, tokens that are no image tokens, D)."""
    image: Tensor
    """(B, image tokens, E)."""


@dataclass(frozen=True)
class Streams:
    """Which tokens of a sequence go through which stream."""

    runs: tuple[tuple[bool, int], ...]
    """The sequence's segments: (is it of image tokens, number of tokens)."""
    text_alone: bool = False
    """No text token that counts sees an image token."""

    @classmethod
    def of(cls, sequence: PackedSequence) -> Streams:
        runs = tuple((s.kind == "image", s.num_tokens) for s in sequence.segments)
        return cls(runs, torch.is_grad_enabled() and _text_is_alone(sequence))

    def before(self, first: int) -> tuple[int, int]:
        """How many tokens of either stream stand before the sequence's token `first`, which begins a
        segment."""
        counts, position = [0, 0], 0
        for is_image, length in self.runs:
            if position >= first:
                break
            counts[is_image] += length
            position += length
        return counts[0], counts[1]

    def split(self, x: Tensor, dim: int, first: int = 0) -> Rows:
        """Rows of the sequence, from its token `first` on, by stream."""
        kept, parts = self._from(first), ([], [])
        for (is_image, _), part in zip(kept, x.split([n for _, n in kept], dim), strict=True):
            parts[is_image].append(part)
        text, image = (torch.cat(p, dim) if p else x.narrow(dim, 0, 0) for p in parts)
        return Rows(text, image)

    def join(self, text: Tensor, image: Tensor, dim: int, first: int = 0) -> Tensor:
        """The inverse of `split`, for streams of one width."""
        kept = self._from(first)
        of_text, of_image = (
            iter(x.split([n for which, n in kept if which == is_image], dim))
            for is_image, x in ((False, text), (True, image))
        )
        parts = [next(of_image if is_image else of_text) for is_image, _ in kept]
        return torch.cat(parts, dim) if parts else text  # a pass that only fills the cache reads nothing

    def segments(self, rows: Rows, first: int) -> list[Tensor]:
        """The rows of each segment; none are left of those before the token `first`."""
        found, position, starts = [], 0, [0, 0]
        for is_image, length in self.runs:
            left = length if position >= first else 0
            found.append(rows[is_image].narrow(1, starts[is_image], left))
            starts[is_image] += left
            position += length
        return found

    def _from(self, first: int) -> Sequence[tuple[bool, int]]:
        position = 0
        for index, (_, length) in enumerate(self.runs):
            if position >= first:
                return self.runs[index:]
            position += length
        return ()


def _text_is_alone(sequence: PackedSequence) -> bool:
    """True if no image stands before a text token that is no padding."""
    first_image = last_text = torch.zeros(1, 1, dtype=torch.int64)
    found = {"image": False, "text": False}
    for segment in sequence.segments:
        steps = segment.ar_step
        if segment.role != "clean" or segment.kind == "class" or not segment.num_tokens:
            continue
        if segment.kind == "image":
            least = steps.amin(1, keepdim=True)
            first_image = torch.minimum(first_image, least) if found["image"] else least
        else:
            most = torch.where(steps >= UNSEEN, 0, steps).amax(1, keepdim=True)
            last_text = torch.maximum(last_text, most) if found["text"] else most
        found[segment.kind] = True
    return not all(found.values()) or bool((last_text < first_image).all())
