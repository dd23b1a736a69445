"""Counting arithmetic: floating-point operations of training steps and of generation.

Two counts. *Dense*: every row of every layer and every query-key pair, as the released code computes.
*Needed*: only the pairs that may attend, and in the last layer only the rows that are read. Normalisation,
activation and softmax are not counted; a multiply-add is two operations; a backward pass is twice a forward.
Text is counted as if it stood before one image, with that image's last AR step among the clean tokens.

A count depends on a split into AR steps through a few sums alone (`SplitFacts`). Their expectation over all
splits that training draws has a closed form, so that the expected arithmetic of a run is exact.

Shape letters: B images, T packed tokens, V context tokens, L image tokens, R noised copies of every AR step,
C condition tokens, n text tokens, S AR steps, D width, P token dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.config import FactorizationConfig, ModelConfig, RunConfig
from causalfusion.factorization import num_ar_steps_probabilities
from causalfusion.model.block_cost import BlockCost
from causalfusion.model.embeddings import TIMESTEP_FREQUENCIES


@dataclass(frozen=True)
class Flops:
    dense: float
    needed: float

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.dense * factor, self.needed * factor)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.dense + other.dense, self.needed + other.needed)


@dataclass(frozen=True)
class SplitFacts:
    """What arithmetic depends on of an image's split: of one split, or expected over many."""

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


@dataclass(frozen=True)
class Form:
    """What stands in an image's training sequence beside its split."""

    copies: int = 1
    """R."""
    text_tokens: float = 0
    timestep_rows: int = 1
    """Noise levels that are embedded: one, or one for every noised token."""
    clean_copies: bool = True
    """Off for Transfusion, whose image is one noised block."""


def form_of(config: RunConfig, text_tokens: float = 0) -> Form:
    """The form of a run's sequences; `text_tokens` stand in one on average, for each of its images."""
    plan = config.factorization
    of_each_token = plan.timesteps == "per_ar_step" or plan.timesteps_per_ar_step > 1
    return Form(
        copies=plan.timesteps_per_ar_step,
        text_tokens=text_tokens,
        timestep_rows=plan.timesteps_per_ar_step * config.model.num_tokens if of_each_token else 1,
        clean_copies=config.text.image_context == "clean",
    )


def split_facts(sizes: Sequence[int]) -> SplitFacts:
    """Of one split, shared by a batch."""
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


def _linear(rows: float, inputs: float, outputs: float) -> float:
    return 2 * rows * inputs * outputs


def _levels(config: ModelConfig, rows: int, others: int = 0) -> float:
    """Embedding `rows` noise levels; with AdaLN-zero also a modulation of each of them, and of `others`."""
    size, inner, rank = config.hidden_size, config.condition_size, config.adaln_rank
    embedding = _linear(rows, TIMESTEP_FREQUENCIES, inner) + _linear(rows, inner, inner)
    if config.conditioning == "in_context":
        return embedding
    if not rank:
        return embedding + _linear(rows + others, inner, (6 * config.depth + 2) * size)
    of_blocks = _linear(rows + others, inner, rank) + _linear(rows + others, rank, 6 * size)
    return embedding + config.depth * of_blocks + _linear(rows + others, inner, 8 * size)


@dataclass(frozen=True)
class Pairs:
    """Query-key pairs that may attend, of one image's training sequence: how many each kind of query sees."""

    classes: float
    text: float
    clean: float
    noised: float

    @property
    def all(self) -> float:
        return self.classes + self.text + self.clean + self.noised


def visible_pairs(config: ModelConfig, split: SplitFacts, form: Form) -> Pairs:
    """What the mask leaves of the square of the sequence's length."""
    total, text, classes = split.num_tokens, form.text_tokens, config.num_condition_tokens
    clean, _, _ = _clean_rows(split, form)
    condition = classes + text
    within = (total**2 + split.squares) / 2  # Σ |κ_s| times the image tokens up to κ_s
    of_clean = condition * clean + (within if text else within - split.last * total)
    return Pairs(
        classes=classes**2,
        text=classes * text + text * (text + 1) / 2,
        clean=of_clean if form.clean_copies else 0,
        noised=form.copies * (condition * total + within),
    )


def sequence_length(config: ModelConfig, split: SplitFacts, form: Form) -> float:
    """T, rows of one image's training sequence."""
    _, context, _ = _clean_rows(split, form)
    return config.num_condition_tokens + form.text_tokens + context + form.copies * split.num_tokens


def image_flops(config: ModelConfig, split: SplitFacts, form: Form) -> Flops:
    """One image's training sequence, forward."""
    size, text, noised = config.hidden_size, form.text_tokens, form.copies * split.num_tokens
    clean, context, context_squared = _clean_rows(split, form)
    pairs = visible_pairs(config, split, form)
    ends = _linear(noised, size, config.prediction_dim) + _linear(text, size, config.vocab_size)
    ends += _levels(config, form.timestep_rows, others=1 if context else 0)
    others = config.num_condition_tokens + text + noised
    length_squared = others**2 + 2 * others * context + context_squared
    length, needed_length = others + context, others + clean
    dense = config.depth * BlockCost(config).flops(length, length, length_squared)
    needed = (config.depth - 1) * BlockCost(config).flops(needed_length, needed_length, pairs.all)
    needed += BlockCost(config).flops(needed_length, text + noised, pairs.text + pairs.noised)
    return Flops(
        dense + ends + _linear(context + noised, config.token_dim, size),
        needed + ends + _linear(clean + noised, config.token_dim, size),
    )


def _clean_rows(split: SplitFacts, form: Form) -> tuple[float, float, float]:
    """Clean copies: those that the image itself needs, those in the sequence, and the square of the latter.
    What follows the image, as text may, sees all of it."""
    if not form.clean_copies:
        return 0, 0, 0
    if form.text_tokens:
        return split.num_tokens, split.num_tokens, split.num_tokens**2
    return split.num_tokens - split.last, split.context, split.context_squared


def forward_flops(
    config: ModelConfig, sizes: Sequence[int], copies: int = 1, text_tokens: float = 0
) -> Flops:
    """One image's training sequence, forward, for AR step sizes `sizes` and `copies` noised copies."""
    return image_flops(config, split_facts(sizes), Form(copies, text_tokens))


def train_step_flops(
    config: ModelConfig, sizes: Sequence[int], batch_size: int, copies: int = 1, text_tokens: float = 0
) -> Flops:
    """Forward and backward of a batch that shares its split."""
    return forward_flops(config, sizes, copies, text_tokens) * (3 * batch_size)


def expected_train_flops(config: RunConfig, images_together: int, text_tokens: float = 0) -> Flops:
    """Forward and backward of an image, expected over the run's plans; `images_together` in a micro-batch."""
    split = expected_facts(config.model.num_tokens, config.factorization, images_together)
    return image_flops(config.model, split, form_of(config, text_tokens)) * 3


def generation_flops(
    config: ModelConfig,
    sizes: Sequence[int],
    diffusion_steps: Sequence[int],
    guided: bool,
    *,
    guided_steps: Sequence[int] | None = None,
    text_tokens: int = 0,
) -> Flops:
    """One image: the prefill, every diffusion step of every AR step, and the appends. `guided_steps` are the
    diffusion steps of each AR step that guidance acts in, by default all."""
    size, condition = config.hidden_size, config.num_condition_tokens + text_tokens
    rows = 2 if guided else 1
    doubled = guided_steps or diffusion_steps
    text_pairs = config.num_condition_tokens * text_tokens + text_tokens * (text_tokens + 1) / 2
    total = _context(config, condition, condition**2, config.num_condition_tokens**2 + text_pairs) * rows
    total += Flops(*[_linear(text_tokens, size, config.vocab_size) * rows] * 2)
    start = 0
    for index, (tokens, steps) in enumerate(zip(sizes, diffusion_steps, strict=True)):
        pairs = tokens * (condition + start + tokens)
        ends = _linear(tokens, config.token_dim, size)
        step = config.depth * BlockCost(config).flops(tokens, tokens, pairs) + ends + _levels(config, 1)
        step += _linear(tokens, size, config.prediction_dim)
        total += Flops(step, step) * (steps + (doubled[index] if guided else 0))
        if index + 1 < len(sizes):
            total += (_context(config, tokens, pairs, pairs) + Flops(ends, ends)) * rows
        start += tokens
    return total


def _context(config: ModelConfig, tokens: float, dense_pairs: float, pairs: float) -> Flops:
    """A pass that only fills the cache: nobody reads the last layer but its keys and values."""
    block = BlockCost(config)
    needed = (config.depth - 1) * block.flops(tokens, tokens, pairs) + block.flops(tokens, 0, 0)
    return Flops(config.depth * block.flops(tokens, tokens, dense_pairs), needed)
