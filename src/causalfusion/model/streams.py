"""Two streams through one transformer: image tokens by weights of their own, all others by those of the text;
they meet in attention (BAGEL 2505.14683, LMFusion 2412.15188).

Shape letters: B rows, T packed tokens, D width of the text, E width of image tokens, N heads, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
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
        runs = self.runs[: self._index(first)]
        return sum(n for is_image, n in runs if not is_image), sum(n for is_image, n in runs if is_image)

    def split(self, x: Tensor, dim: int, first: int = 0) -> Rows:
        """Rows of the sequence, from its token `first` on, by stream."""
        kept, parts = self.runs[self._index(first) :], ([], [])
        for (is_image, _), part in zip(kept, x.split([n for _, n in kept], dim), strict=True):
            parts[is_image].append(part)
        text, image = (torch.cat(p, dim) if p else x.narrow(dim, 0, 0) for p in parts)
        return Rows(text, image)

    def join(self, text: Tensor, image: Tensor, dim: int, first: int = 0) -> Tensor:
        """The inverse of `split`, for streams of one width."""
        kept = self.runs[self._index(first) :]
        of_text, of_image = (
            iter(x.split([n for which, n in kept if which == is_image], dim))
            for is_image, x in ((False, text), (True, image))
        )
        parts = [next(of_image if is_image else of_text) for is_image, _ in kept]
        return torch.cat(parts, dim) if parts else text  # a pass that only fills the cache reads nothing

    def segments(self, rows: Rows, first: int) -> list[Tensor]:
        """The rows of each segment; none are left of those before the token `first`."""
        found, starts, index = [], [0, 0], self._index(first)
        for number, (is_image, length) in enumerate(self.runs):
            left = length if number >= index else 0
            found.append(rows[is_image].narrow(1, starts[is_image], left))
            starts[is_image] += left
        return found

    def _index(self, first: int) -> int:
        """How many segments stand before the sequence's token `first`."""
        ends = accumulate(n for _, n in self.runs)
        return sum(end <= first and first > 0 for end in ends)


def _text_is_alone(sequence: PackedSequence) -> bool:
    """True if no image stands before a text token that is no padding."""
    kinds = [kind for s in sequence.segments for kind in [s.kind] * s.num_tokens]
    is_image, is_text = (
        torch.tensor([kind == which for kind in kinds], device=sequence.clean.device)
        for which in ("image", "text")
    )
    steps = sequence.ar_step
    first_image = torch.where(is_image & sequence.clean, steps, UNSEEN).amin(1)
    last_text = torch.where(is_text & (steps < UNSEEN), steps, 0).amax(1)
    return bool((last_text < first_image).all())
