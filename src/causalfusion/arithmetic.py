"""Counting arithmetic: floating-point operations of training steps and of generation.

Two counts. *Dense*: every row of every layer and every query-key pair, as the released code computes.
*Needed*: only the pairs that may attend, and in the last layer only the rows that are read. Normalisation,
activation and softmax are not counted; a multiply-add is two operations; a backward pass is twice a forward.
Text is counted as if it stood before one image, with that image's last AR step among the clean tokens.

Shape letters: T packed tokens, V context tokens, L image tokens, D width, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from causalfusion.config import ModelConfig


@dataclass(frozen=True)
class Flops:
    dense: float
    needed: float

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.dense * factor, self.needed * factor)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.dense + other.dense, self.needed + other.needed)


def _linear(rows: float, inputs: float, outputs: float) -> float:
    return 2 * rows * inputs * outputs


def _block(config: ModelConfig, key_rows: float, query_rows: float, pairs: float) -> float:
    """One layer: keys and values of `key_rows` rows, the rest for `query_rows`, `pairs` of attention."""
    size = config.hidden_size
    hidden = int(size * config.mlp_ratio)
    linear = _linear(key_rows, size, 2 * size) + _linear(query_rows, size, 2 * size + 2 * hidden)
    return linear + 4 * pairs * size


def forward_flops(config: ModelConfig, sizes: Sequence[int], copies: int = 1, text_tokens: int = 0) -> Flops:
    """One image's training sequence, forward, for AR step sizes `sizes` and `copies` noised copies."""
    total, condition = sum(sizes), config.num_condition_tokens + text_tokens
    context, noised = total - (0 if text_tokens else sizes[-1]), copies * total
    length = condition + context + noised
    clean_pairs = noised_pairs = start = 0
    for size in sizes:
        noised_pairs += copies * size * (condition + start + size)
        if start + size <= context:
            clean_pairs += size * (condition + start + size)
        start += size
    pairs = condition**2 + clean_pairs + noised_pairs
    size = config.hidden_size
    ends = _linear(context + noised, config.token_dim, size) + _linear(noised, size, config.token_dim)
    ends += _linear(text_tokens, size, config.vocab_size)
    dense = config.depth * _block(config, length, length, length**2)
    needed = (config.depth - 1) * _block(config, length, length, pairs)
    needed += _block(config, length, text_tokens + noised, text_tokens**2 + noised_pairs)
    return Flops(dense + ends, needed + ends)


def train_step_flops(
    config: ModelConfig, sizes: Sequence[int], batch_size: int, copies: int = 1, text_tokens: int = 0
) -> Flops:
    """Forward and backward of a batch that shares its split."""
    return forward_flops(config, sizes, copies, text_tokens) * (3 * batch_size)


def generation_flops(
    config: ModelConfig, sizes: Sequence[int], diffusion_steps: Sequence[int], guided: bool
) -> Flops:
    """One image: the prefill, every diffusion step of every AR step, and the appends."""
    size, condition = config.hidden_size, config.num_condition_tokens
    total = config.depth * _block(config, condition, condition, condition**2)
    start = 0
    for index, (tokens, steps) in enumerate(zip(sizes, diffusion_steps, strict=True)):
        pairs = tokens * (condition + start + tokens)
        layer = config.depth * _block(config, tokens, tokens, pairs)
        ends = _linear(tokens, config.token_dim, size)
        total += steps * (layer + ends + _linear(tokens, size, config.token_dim))
        if index + 1 < len(sizes):
            total += layer + ends
        start += tokens
    total *= 2 if guided else 1
    return Flops(total, total)
