"""Plans: the order of an image's tokens, and the AR step of each.

Shape letters: B images, L image tokens, S AR steps. A plan's split is drawn for a whole batch (leading
size 1) or for every image (leading size B). Everything is drawn before the model runs, from generators
that are passed in or derived from (seed, position in the sample stream).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from causalfusion.config import FactorizationConfig, ModelConfig, OrderName
from causalfusion.errors import UserError
from causalfusion.rng import derive_generator

UNSEEN = 2**30
"""The AR step of padding."""


@dataclass(frozen=True)
class Plan:
    """The factorization of a batch of images."""

    order: Tensor
    """(B, L) int64: order[b, j] is the raster index of the j-th token."""
    ar_step: Tensor
    """(1 or B, L) int64, non-decreasing from 1: the AR step of the j-th token; UNSEEN for padding."""
    grid_width: int
    """Tokens in a row of the image; not used where images have grids of their own."""
    grid: Tensor | None = None
    """(1 or B, 2) int64: rows and columns of the images, where they are not those of the model's grid."""
    lengths: Tensor | None = None
    """(B,) int64: tokens of each image, where those of the batch differ; padding stands behind them. Images
    then have grids and splits of their own. None: all L."""

    @property
    def places(self) -> Tensor:
        """(B, L, 2) int64: row and column of the j-th token; 0, 0 for padding."""
        if self.lengths is None or self.grid is None:
            return places_of(self.order, self.grid_width)
        return places_of(torch.where(self.ar_step < UNSEEN, self.order, 0), self.grid[:, 1:])

    def to(self, device: torch.device) -> Plan:
        found = {name: getattr(self, name) for name in ("order", "ar_step", "grid", "lengths")}
        moved = replace(self, **{name: None if t is None else t.to(device) for name, t in found.items()})
        if len(self.ar_step):  # there, a GPU would be waited for
            vars(moved)["num_context_tokens"] = self.num_context_tokens
        return moved

    def images(self, rows: slice | Tensor) -> Plan:
        """The plan of some of the images, as long as the longest of them."""
        if self.lengths is None or self.grid is None:
            steps = self.ar_step if len(self.ar_step) == 1 else self.ar_step[rows]
            return replace(self, order=self.order[rows], ar_step=steps)
        lengths = self.lengths[rows]
        order, ar_step = (tensor[rows][:, : int(lengths.max())] for tensor in (self.order, self.ar_step))
        return replace(self, order=order, ar_step=ar_step, grid=self.grid[rows], lengths=lengths)

    def step_sizes(self, row: int) -> list[int]:
        """Number of tokens of each AR step of an image."""
        steps = self.ar_step[row]
        return torch.bincount(steps[steps < UNSEEN])[1:].tolist()

    @property
    def num_ar_steps(self) -> int:
        """The largest S of the batch."""
        return int(self.ar_step[self.ar_step < UNSEEN].max())

    @property
    def context_lengths(self) -> Tensor:
        """(1 or B,) int64: the number of clean tokens that each image attends to, L - |κ_S|."""
        if self.lengths is None:
            return (self.ar_step < self.ar_step[:, -1:]).sum(1)
        return (self.ar_step < self.ar_step.gather(1, self.lengths[:, None] - 1)).sum(1)

    @cached_property
    def num_context_tokens(self) -> int:
        """V, the number of clean tokens that some image of the batch attends to: L - min |κ_S|."""
        return int(self.context_lengths.max())


def places_of(raster: Tensor, grid_width: int | Tensor) -> Tensor:
    """Rows and columns, (..., 2) int64, of raster indices (...)."""
    return torch.stack([raster // grid_width, raster % grid_width], dim=-1)


def raster_of(places: Tensor, grid_width: int | Tensor) -> Tensor:
    """Raster indices (...) of places (..., 2)."""
    return places[..., 0] * grid_width + places[..., 1]


def grid_tensor(
    model: ModelConfig, grid: tuple[int, int] | None, device: torch.device | None = None
) -> Tensor | None:
    """(1, 2) int64: rows and columns of a grid; None for that of the model, whose tables fit as they are."""
    if grid in (None, (model.grid_height, model.grid_width)):
        return None
    return torch.tensor([grid], device=device)


def ar_step_of(step_sizes: Sequence[int]) -> Tensor:
    """AR step, from 1, of each token in order, (L,) int64, for these numbers of tokens per step."""
    sizes = torch.as_tensor(step_sizes)
    return torch.repeat_interleave(torch.arange(1, len(sizes) + 1), sizes)


def num_ar_steps_probabilities(num_tokens: int, config: FactorizationConfig) -> Tensor:
    """Probabilities of S = 1..L, (L,) float64 (proportional to γ^(S-1)). Raises UserError if
    a fixed S is larger than L."""
    if config.distribution == "mask_ratio":
        probabilities = torch.zeros(num_tokens, dtype=torch.float64)
        asked = mask_ratio_probabilities(num_tokens, config)
        probabilities[0] = asked[-1]
        if num_tokens > 1:
            probabilities[1] = 1 - asked[-1]
        return probabilities
    if config.distribution == "fixed":
        if config.num_ar_steps > num_tokens:
            raise UserError(
                f"factorization.num_ar_steps is {config.num_ar_steps}; "
                f"expected at most the {num_tokens} tokens"
            )
        return (torch.arange(1, num_tokens + 1) == (config.num_ar_steps or num_tokens)).double()
    decay = config.decay if config.distribution == "decay" else 1.0
    weights = torch.tensor(decay, dtype=torch.float64) ** torch.arange(num_tokens)
    return weights / weights.sum()


def mask_ratio_probabilities(num_tokens: int, config: FactorizationConfig) -> Tensor:
    """Probabilities of 1..L tokens in the last AR step, (L,) float64, for distribution mask_ratio: ceil(L r)
    of them for r from a normal distribution truncated to [mask_ratio_min, 1] (MAR, section 5.1)."""
    edges = torch.arange(num_tokens + 1, dtype=torch.float64) / num_tokens
    below = _truncated_normal_cdf(edges, config)
    return below.diff()


def _truncated_normal_cdf(x: Tensor, config: FactorizationConfig) -> Tensor:
    low, high, inside = (
        torch.special.ndtr((torch.as_tensor(v).double() - config.mask_ratio_mean) / config.mask_ratio_std)
        for v in (config.mask_ratio_min, 1.0, x.clamp(config.mask_ratio_min, 1.0))
    )
    return (inside - low) / (high - low)


def random_composition(num_tokens: int, num_parts: int, generator: torch.Generator) -> list[int]:
    """A uniformly random composition of L into S positive parts, by S-1 distinct cuts among L-1 places."""
    cuts = torch.randperm(num_tokens - 1, generator=generator)[: num_parts - 1].sort().values + 1
    edges = [0, *cuts.tolist(), num_tokens]
    return [end - start for start, end in pairwise(edges)]


def draw_split(num_tokens: int, config: FactorizationConfig, generator: torch.Generator) -> list[int]:
    """Random AR step sizes: S from its distribution, then a random composition of L into S parts; of
    distribution mask_ratio, known and asked tokens."""
    if config.distribution == "mask_ratio":
        cumulative = mask_ratio_probabilities(num_tokens, config).cumsum(0)
        u = torch.rand((), dtype=torch.float64, generator=generator)
        asked = min(int(torch.searchsorted(cumulative, u, right=True)) + 1, num_tokens)
        return [num_tokens - asked, asked] if asked < num_tokens else [num_tokens]
    cumulative = num_ar_steps_probabilities(num_tokens, config).cumsum(0)
    u = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    num_parts = int(torch.searchsorted(cumulative, u, right=True)) + 1
    return random_composition(num_tokens, min(num_parts, num_tokens), generator)


def even_split(num_tokens: int, num_parts: int) -> list[int]:
    """S sizes, with sum L, that differ by at most one, the larger ones first."""
    small, extra = divmod(num_tokens, num_parts)
    return [small + (i < extra) for i in range(num_parts)]


def cosine_split(num_tokens: int, num_parts: int) -> list[int]:
    """S increasing sizes with sum L: after step s a fraction cos(π s / 2S) remains. No size is 0."""
    edges = [0]
    for s in range(1, num_parts + 1):
        target = round(num_tokens * (1 - math.cos(math.pi / 2 * s / num_parts)))
        edges.append(min(max(target, edges[-1] + 1), num_tokens - (num_parts - s)))
    return [end - start for start, end in pairwise(edges)]


def masked_cosine_split(num_tokens: int, num_parts: int) -> list[int]:
    """S sizes with sum L as MAR and MaskGIT choose them: after step s floor(L cos(π s / 2S)) tokens remain,
    at least 1 and fewer than before; the last step takes all."""
    left = [num_tokens]
    for s in range(1, num_parts):
        remain = math.floor(num_tokens * math.cos(math.pi / 2 * s / num_parts))
        left.append(max(1, min(left[-1] - 1, remain)))
    return [before - after for before, after in pairwise([*left, 0])]


def draw_order(
    name: OrderName,
    grid_height: int,
    grid_width: int,
    block_size: int,
    generator: torch.Generator,
    given: Sequence[int] = (),
) -> Tensor:
    """Raster indices in the order of generation, (L,); a `given` order overrides `name`. Raises UserError if
    that is not a permutation.

    `block_raster`: squares of `block_size` tokens in raster order, with raster order inside each. `dilated`:
    one token of each such square in turn, so that consecutive tokens are `block_size` apart.
    """
    if given:
        if sorted(given) != list(range(grid_height * grid_width)):
            raise UserError(
                f"given_order has {len(given)} numbers; expected each of "
                f"0..{grid_height * grid_width - 1} once"
            )
        return torch.tensor(given)
    if name == "random":
        return torch.randperm(grid_height * grid_width, generator=generator)
    raster = torch.arange(grid_height * grid_width)
    if name == "raster":
        return raster
    row, column = raster // grid_width, raster % grid_width
    block = (row // block_size) * math.ceil(grid_width / block_size) + column // block_size
    phase = (row % block_size) * block_size + column % block_size
    return torch.argsort(block if name == "block_raster" else phase, stable=True)


def plan_batch(
    config: FactorizationConfig,
    grid_height: int,
    grid_width: int,
    *,
    seed: int,
    split_index: int,
    sample_indices: Sequence[int],
) -> Plan:
    """The training plan of the images at these positions of the sample stream.

    Orders depend on (seed, position) alone. A split for the whole batch depends on (seed, split_index), where
    split_index is the position at which the train step begins, equal on all processes.
    """
    num_tokens = grid_height * grid_width
    orders, splits = [], []
    for index in sample_indices:
        generator = derive_generator(seed, "order", index)
        orders.append(
            draw_order(
                config.order, grid_height, grid_width, config.block_size, generator, config.given_order
            )
        )
        if config.split == "per_image":
            splits.append(ar_step_of(draw_split(num_tokens, config, derive_generator(seed, "split", index))))
    if config.split == "per_batch":
        sizes = draw_split(num_tokens, config, derive_generator(seed, "split", split_index))
        splits.append(ar_step_of(sizes))
    return Plan(torch.stack(orders), torch.stack(splits), grid_width)


def plan_together(plans: Sequence[Plan], grids: Sequence[tuple[int, int]]) -> Plan:
    """One plan of images with a plan each: shorter ones get padding, which is its own place in the order."""
    lengths = [plan.order.shape[1] for plan in plans]
    padding = [torch.arange(length, max(lengths))[None] for length in lengths]
    orders = [torch.cat([plan.order, p], dim=1) for plan, p in zip(plans, padding, strict=True)]
    steps = [
        torch.cat([plan.ar_step, torch.full_like(p, UNSEEN)], dim=1)
        for plan, p in zip(plans, padding, strict=True)
    ]
    return Plan(torch.cat(orders), torch.cat(steps), 0, torch.tensor(grids), torch.tensor(lengths))


def loss_weights(ar_step: Tensor, config: FactorizationConfig, lengths: Tensor | None = None) -> Tensor:
    """AR loss weights, (1 or B, L) float32, which fall from λ to 1 with the start of the token's AR step.

    linear: w = λ - (λ - 1) start/L; cosine: w = 1 + (λ - 1) (1 + cos(π start/L)) / 2.

    With the `lengths` (B,) of images, padding weighs nothing and their own tokens L / length times as much:
    the mean over L is then the one over their own (FiTv2).
    """
    if lengths is not None:
        own = (ar_step < UNSEEN) * (ar_step.shape[1] / lengths[:, None])
        return _weights_by_start(ar_step, config, lengths[:, None]) * own.float()
    return _weights_by_start(ar_step, config, ar_step.shape[1])


def _weights_by_start(ar_step: Tensor, config: FactorizationConfig, length: int | Tensor) -> Tensor:
    if config.loss_weight == "none":
        return torch.ones_like(ar_step, dtype=torch.float32)
    first, last = config.loss_weight_first, config.loss_weight_last
    start = torch.searchsorted(ar_step.contiguous(), ar_step.contiguous(), right=False).double()
    start = start / length
    if config.loss_weight == "linear":
        return (first - (first - last) * start).float()
    return (last + (first - last) * (1 + torch.cos(math.pi * start)) / 2).float()
