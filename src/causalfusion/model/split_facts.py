"""The sums of a split into AR steps on which arithmetic depends, and their expectation over all splits that
training draws.

Letters: L image tokens, S AR steps, V context tokens, κ_s the tokens of AR step s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.config import FactorizationConfig
from causalfusion.factorization import mask_ratio_probabilities, num_ar_steps_probabilities


@dataclass(frozen=True)
class SplitFacts:
    """The sums of an image's split on which arithmetic depends: those of one split, or expected over many."""

    num_tokens: int
    """L."""
    last: float
    """|κ_S|, tokens of the last AR step: those that have no clean copy."""
    squares: float
    """Σ |κ_s|²."""
    context: float
    """V, clean copies that stand in the sequence, also where they only fill up to the longest of a batch."""
    context_squared: float
    """V²: its expectation is more than the square of V's."""


def split_facts(sizes: Sequence[int]) -> SplitFacts:
    """The facts of one split, shared by a batch."""
    total, last = sum(sizes), sizes[-1]
    context = total - last
    return SplitFacts(total, last, sum(size * size for size in sizes), context, context**2)


def expected_facts(num_tokens: int, config: FactorizationConfig, batch_size: int = 1) -> SplitFacts:
    """Expected over the splits that training draws: S from its distribution, then a uniformly random
    composition of L. Exact. `batch_size`: images that are computed together, which have the longest context
    of them where each has a split of its own.

    In a composition of L into S parts, a part is k or more with probability C(L-k, S-1) / C(L-1, S-1); from
    it follow E|κ_S| = L/S and E|κ_s|² = 2 L (L+1) / (S (S+1)) - L/S.
    """
    if config.distribution == "mask_ratio":
        return _facts_of_mask_ratio(num_tokens, config)
    probability = num_ar_steps_probabilities(num_tokens, config)
    possible = probability > 0
    probability, steps = probability[possible] / probability.sum(), torch.arange(1, num_tokens + 1)[possible]
    of_part = 2 * num_tokens * (num_tokens + 1) / (steps * (steps + 1)).double() - num_tokens / steps
    last, shortest_squared = float((probability * num_tokens / steps).sum()), float(probability @ of_part)
    shortest = last
    if config.split == "per_image":
        shortest, shortest_squared = _shortest_last(num_tokens, steps, probability, batch_size)
    return SplitFacts(
        num_tokens,
        last=last,
        squares=float((probability * steps * of_part).sum()),
        context=num_tokens - shortest,
        context_squared=num_tokens**2 - 2 * num_tokens * shortest + shortest_squared,
    )


def _facts_of_mask_ratio(num_tokens: int, config: FactorizationConfig) -> SplitFacts:
    """Known tokens, then asked ones: a batch shares its split."""
    probability = mask_ratio_probabilities(num_tokens, config)
    asked = torch.arange(1, num_tokens + 1, dtype=torch.float64)
    known = num_tokens - asked
    return SplitFacts(
        num_tokens,
        last=float(probability @ asked),
        squares=float(probability @ (asked**2 + known**2)),
        context=float(probability @ known),
        context_squared=float(probability @ known**2),
    )


def _shortest_last(
    num_tokens: int, steps: Tensor, probability: Tensor, batch_size: int
) -> tuple[float, float]:
    """Mean and mean square of the shortest last AR step among `batch_size` images."""
    k = torch.arange(1, num_tokens + 1, dtype=torch.float64)
    at_least = torch.zeros_like(k)
    for num_parts, p in zip(steps.tolist(), probability.tolist(), strict=True):
        room = num_tokens - k - num_parts + 1
        log = torch.lgamma(num_tokens - k + 1) - torch.lgamma(room.clamp(min=0) + 1)
        log += math.lgamma(num_tokens - num_parts + 1) - math.lgamma(num_tokens)
        at_least += p * torch.where(room >= 0, log.exp(), 0.0)
    at_least = at_least.clamp(max=1) ** batch_size
    return float(at_least.sum()), float(((2 * k - 1) * at_least).sum())
