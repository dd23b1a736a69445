"""Memory of training on one device: the state of all parameters, and the activations kept for the backward
pass.

The formulas follow the code; `tests/test_estimate.py` compares them with the memory of real steps.

Letters: D width, M ratio of the MLP's hidden width to D. A row is a token of a packed sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from causalfusion.config import ModelConfig, RunConfig
from causalfusion.model.arithmetic import SplitFacts, form_of, sequence_length, split_facts, visible_pairs
from causalfusion.model.transformer import Transformer, count_parameters

STATE_BYTES = 20
"""Bytes per parameter: float32 weight, gradient, two moments and average."""
CHECKPOINT_EVERY = {"none": 0, "selective": 2, "full": 1}
"""One block in this many is recomputed in the backward pass; 0: none."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a train step on one device, in bytes."""

    state: float
    """Weights, gradients, moments and averages; with fsdp a shard of them, and two gathered blocks."""
    activations: float

    @property
    def total(self) -> float:
        return self.state + self.activations


@lru_cache(maxsize=8)
def parameters_of(config: ModelConfig) -> tuple[int, int]:
    """(number of trainable parameters of the model, of one block)."""
    with torch.device("meta"):
        model = Transformer(config)
    return count_parameters(model), count_parameters(model.blocks[0])


def state_bytes(config: RunConfig, sharded_over: int) -> float:
    """Bytes of the training state on one device, if it is sharded over this many; 1: not sharded."""
    in_all, in_block = parameters_of(config.model)
    if sharded_over == 1:
        return float(STATE_BYTES * in_all)
    gathered = 4 if config.train.precision == "float32" else 2  # plus a float32 gradient, below
    return STATE_BYTES * in_all / sharded_over + 2 * in_block * (gathered + 4)


def largest_split(config: RunConfig) -> SplitFacts:
    """The split, of those that training can draw, with the longest sequence and the most pairs."""
    total, plan = config.model.num_tokens, config.factorization
    steps = plan.num_ar_steps if plan.distribution == "fixed" else min(2, total)
    return split_facts([total - steps + 1, *[1] * (steps - 1)])


def activation_bytes(
    config: RunConfig,
    images: int,
    *,
    on_gpu: bool,
    text_tokens: float = 0,
    split: SplitFacts | None = None,
) -> float:
    """Bytes of activations at the peak of the backward pass of a micro-batch of `images`, for a `split` (by
    default the largest one)."""
    model, form, split = config.model, form_of(config, text_tokens), split or largest_split(config)
    rows, pairs = sequence_length(model, split, form), visible_pairs(model, split, form)
    read = text_tokens + form.copies * split.num_tokens
    low = config.train.precision == "bfloat16"
    of_row = _row_bytes(model, low, on_gpu)
    seen, seen_last = pairs.all, pairs.text + pairs.noised
    if config.factorization.split == "per_image" and images > 1 and split.context:
        seen, seen_last = rows**2, rows * read  # images with different splits are computed as one block
    per_pair = 0 if on_gpu else model.num_heads * (2 if low else 4)  # FlexAttention stores no scores
    weights = 2 * _block_linear(model) if low else 0  # bfloat16 copies, made by autocast
    block = images * (of_row * rows + per_pair * seen) + weights
    key_rows = images * _key_bytes(model, low) * (rows - read)
    last = images * (of_row * read + per_pair * seen_last) + key_rows + weights
    inputs = images * rows * model.hidden_size * 4
    working = images * rows * model.hidden_size * 4 * (model.mlp_ratio + 7)
    kept, peak = 0.0, 0.0
    every = CHECKPOINT_EVERY[config.train.activation_checkpointing]
    for layer in range(model.depth):
        is_last = layer == model.depth - 1
        own, busy = (last, working * read / rows) if is_last else (block, working)
        peak = max(peak, kept + own + busy)
        kept += inputs if every and layer % every == 0 else own
    ends = images * 4 * (2 * read * model.hidden_size + 6 * read * model.token_dim)
    return peak + ends + images * 4 * 3 * text_tokens * model.vocab_size


def _row_bytes(model: ModelConfig, low: bool, on_gpu: bool) -> float:
    """Bytes that a block keeps for each row. In units of D numbers: the residual stream before attention and
    before the MLP (2), the input of qkv (1), its output (3), normalised q and k (2), the input of attention's
    output projection (1), that of the MLP (1), and twice its hidden layer (2 M).

    In bfloat16 the residual stream stays float32. A GPU also keeps the output of attention before its heads
    are merged and, in bfloat16, the float32 q and k before normalisation.
    """
    numbers = 8 + 2 * model.mlp_ratio - 2 * (not model.qk_norm)
    if on_gpu:
        numbers += 1
    of_each = (2 if low else 4) * numbers + 2 * 4
    if on_gpu and low and model.qk_norm:
        of_each += 2 * 4
    if model.conditioning == "adaln_zero":
        of_each += 28 if low else 48
    statistics = 4 * (4 + (4 * model.num_heads if model.qk_norm else 0) + (model.num_heads if on_gpu else 0))
    return of_each * model.hidden_size + statistics


def _key_bytes(model: ModelConfig, low: bool) -> float:
    """Bytes per row of the last block that is only attended to: residual, input, k and v, normalised k."""
    return model.hidden_size * (4 + (2 if low else 4) * (4 if model.qk_norm else 3))


def _block_linear(model: ModelConfig) -> float:
    """Number of weights in a block's matrices."""
    return model.hidden_size**2 * (4 + 2 * model.mlp_ratio)
