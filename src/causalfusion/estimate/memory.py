"""Memory of training on one device: the state of all parameters, and the activations kept for the backward
pass.

The formulas follow the code; `tests/test_estimate.py` compares them with the memory of real steps.

Letters: D width, M ratio of the MLP's hidden width to D. A row is a token of a packed sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from causalfusion.config import ModelConfig, RunConfig
from causalfusion.estimate.optimizer import (
    MOMENT_BYTES,
    bytes_per_parameter,
    frozen_of,
    muon_shapes,
    skeleton_of,
)
from causalfusion.model.arithmetic import Pairs, form_of, sequence_length, visible_pairs
from causalfusion.model.block_cost import BlockCost, image_cost
from causalfusion.model.encoder import encoder_config
from causalfusion.model.head_cost import HeadCost
from causalfusion.model.split_facts import SplitFacts, split_facts
from causalfusion.model.transformer import count_parameters

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


FROZEN_BYTES = 4
"""Bytes per parameter that is not trained: it is its own average; and of a distillation's teacher."""


def parameters_of(config: ModelConfig) -> tuple[int, int]:
    """(number of trainable parameters of the model, of one block)."""
    model = skeleton_of(config)
    return count_parameters(model), count_parameters(model.blocks[0])


def state_bytes(config: RunConfig, sharded_over: int) -> float:
    """Bytes of the training state on one device, if it is sharded over this many; 1: not sharded."""
    in_all, in_block = parameters_of(config.model)
    frozen, by_muon = frozen_of(config), sum(map(math.prod, muon_shapes(config)))
    state = float(bytes_per_parameter(config.train) * (in_all - frozen) + FROZEN_BYTES * frozen)
    state -= MOMENT_BYTES * by_muon
    teacher = FROZEN_BYTES * in_all if config.distill.steps else 0  # whole in every process
    if sharded_over == 1:
        return state + teacher
    gathered = 4 if config.train.precision == "float32" else 2  # plus a float32 gradient, below
    return state / sharded_over + 2 * in_block * (gathered + 4) + teacher


def of_largest_images(config: RunConfig) -> RunConfig:
    """The run as one whose images all have the largest size that it allows: of images of any size, more
    tokens than the largest square within their area may have."""
    model, area = config.model, config.data.max_area if config.data.native else 0
    cell = config.codec.patch_size * max(config.codec.downsample, 1)
    if area // cell**2 <= model.num_tokens:
        return config
    columns = math.ceil(area // cell**2 / model.grid_height)
    return replace(config, model=replace(model, grid_width=columns))


def largest_split(config: RunConfig) -> SplitFacts:
    """The split, of those that training can draw, with the longest sequence and the most pairs."""
    total, plan = config.model.num_tokens, config.factorization
    if plan.distribution == "mask_ratio":
        asked = math.ceil(total * plan.mask_ratio_min)
        return split_facts([total - asked, asked] if asked < total else [total])
    steps = (plan.num_ar_steps or total) if plan.distribution == "fixed" else min(2, total)
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
    read = text_tokens + form.rows_per_token * split.num_tokens
    if model.context == "bidirectional" or model.head.ask == "previous":
        read = split.last if model.context == "bidirectional" else rows
        pairs = Pairs(0, 0, (rows - read) * rows, read * rows)
    low, cost = config.train.precision == "bfloat16", BlockCost(model)
    of_row, of_text = image_cost(model).row_bytes(low, on_gpu), cost.row_bytes(low, on_gpu)
    others = model.num_condition_tokens + text_tokens
    more = images * (of_text - of_row) * others  # rows of the text, where images have weights of their own
    seen, seen_last = pairs.all, pairs.text + pairs.noised
    own_splits = config.factorization.split == "per_image" or config.data.batches != "buckets"
    if own_splits and images > 1 and split.context:
        seen, seen_last = rows**2, rows * read  # images with different splits are computed as one block
    fused = on_gpu or (model.context == "bidirectional" and not low)  # kernels that store no scores
    per_pair = 0 if fused else model.num_heads * (2 if low else 4)
    weights = 2 * cost.matrix_weights if low else 0  # bfloat16 copies, made by autocast
    block = images * (of_row * rows + per_pair * seen) + more + weights
    key_rows = images * cost.key_bytes(low) * (rows - read)
    last = images * (of_row * read + per_pair * seen_last) + more + key_rows + weights
    inputs = images * rows * model.hidden_size * 4
    working = images * rows * model.hidden_size * 4 * (model.mlp_size / model.hidden_size + 7)
    kept, peak = 0.0, 0.0
    every = CHECKPOINT_EVERY[config.train.activation_checkpointing]
    for layer in range(model.depth):
        is_last = layer == model.depth - 1
        own, busy = (last, working * read / rows) if is_last else (block, working)
        peak = max(peak, kept + own + busy)
        kept += inputs if every and layer % every == 0 else own
    ends = images * 4 * (2 * read * model.hidden_size + 6 * read * model.token_dim)
    if model.per_token:
        predicted = split.last if model.context == "bidirectional" else split.num_tokens
        ends += images * form.copies * predicted * HeadCost(model).row_bytes(low)
    if model.encoder.depth:
        inner = BlockCost(encoder_config(model))
        kept = inner.row_bytes(low, on_gpu) * rows + per_pair * rows**2
        ends += model.encoder.depth * images * kept
    return peak + ends + images * 4 * 3 * text_tokens * model.vocab_size
