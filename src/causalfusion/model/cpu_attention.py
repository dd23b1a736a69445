"""Attention in blocks of rows, each against only the columns that one of its rows can see.

With a split into S AR steps, two thirds of a training mask is empty. A block's scores, softmax and weighted
sum are plain matrix products without the empty part, and usually without any mask; on a CPU this takes half
to a third of the time of `scaled_dot_product_attention` with a mask, in the forward and the backward pass.

Shape letters: B images, N heads, G heads of keys and values, T tokens, Q queries (the last Q of the T
tokens), H head size, R rows of a block, K columns that they see.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from causalfusion.mask import dense_mask
from causalfusion.model.kv_heads import repeat_heads
from causalfusion.sequence import PackedSequence

MIN_ROWS, MAX_ROWS = 48, 128
"""Shorter AR steps share a block, longer ones are divided. Chosen by measurement."""


@dataclass(frozen=True)
class RowBlock:
    start: int
    end: int
    columns: list[tuple[int, int]]
    """Runs of columns that one of the rows sees."""
    bias: Tensor | None
    """(1 or B, 1, R, K): -inf where a row does not see one of these columns, else 0; None: all see all."""


def row_blocks(mask: Tensor, boundaries: list[int]) -> list[RowBlock]:
    """Cut the rows of a mask (1 or B, 1, T, T) where what they see changes: at segments and AR steps."""
    seen = mask.any(0)[0]
    changes = (seen[1:] != seen[:-1]).any(1).nonzero()[:, 0] + 1
    blocks, start = [], 0
    for edge in sorted({*boundaries, *changes.tolist()}):
        if edge - start >= MIN_ROWS or (edge > start and edge in boundaries):
            parts = -(-(edge - start) // MAX_ROWS)
            cuts = [start + (edge - start) * i // parts for i in range(parts + 1)]
            blocks += [_row_block(mask, a, b) for a, b in pairwise(cuts)]
            start = edge
    return blocks


def _row_block(mask: Tensor, start: int, end: int) -> RowBlock:
    columns = mask[:, :, start:end].flatten(0, 2).any(0)
    hidden = ~mask[:, :, start:end, columns]
    return RowBlock(start, end, _runs(columns), _bias(hidden) if bool(hidden.any()) else None)


def _bias(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _runs(columns: Tensor) -> list[tuple[int, int]]:
    """The stretches of True, as (start, end)."""
    edge = torch.zeros(1, dtype=torch.int8, device=columns.device)
    steps = torch.diff(columns.to(torch.int8), prepend=edge, append=edge)
    starts, ends = (steps == 1).nonzero()[:, 0], (steps == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


class SegmentAttend:
    """Attention over a packed sequence by row blocks. They are read off the dense mask, nothing else."""

    def __init__(self, sequence: PackedSequence) -> None:
        self.num_tokens = sequence.num_tokens
        mask = dense_mask(sequence.clean, sequence.ar_step, owner=sequence.owner)
        self.blocks = row_blocks(mask, sequence.boundaries)

    @property
    def share(self) -> float:
        """Share of all T² pairs that lie in the blocks."""
        pairs = sum((b.end - b.start) * (stop - start) for b in self.blocks for start, stop in b.columns)
        return pairs / self.num_tokens**2

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, N, Q, H), k and v (B, G, T, H) -> (B, N, Q, H); Q begins at a segment."""
        first = self.num_tokens - q.shape[2]
        k, v = repeat_heads(k, q), repeat_heads(v, q)
        blocks = [block for block in self.blocks if block.start >= first]
        return _BlockAttention.apply(q, k, v, blocks, first)  # pyright: ignore[reportReturnType]


def attend_without_gradient(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
    """`scaled_dot_product_attention`, but by plain products where torch's own is slow: bf16 on a CPU.

    Image by image, so that the weights of one image at a time are in memory.
    """
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    bias = None if attn_mask is None else _bias(~attn_mask)
    out = torch.empty_like(q)
    for image in range(len(q)):
        row = slice(image, image + 1)
        image_bias = bias if bias is None or len(bias) == 1 else bias[row]
        torch.matmul(attention_weights(q[row], k[row], image_bias), v[row], out=out[row])
    return out


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √H + bias): q (B, N, R, H), k (B, N, K, H) -> (B, N, R, K); it sums in float32."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if bias is not None:
        scores += bias.to(scores.dtype)
    return torch.softmax(scores, dim=-1)


class _BlockAttention(torch.autograd.Function):
    """The blocks as one node of the graph: else each slice of columns has a full-sized gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock], first: int) -> Tensor:
        out = torch.empty_like(q)
        saved = []
        for block in blocks:
            rows = slice(block.start - first, block.end - first)
            weights = attention_weights(q[:, :, rows], _take(k, block.columns), block.bias)
            out[:, :, rows] = torch.matmul(weights, _take(v, block.columns))
            if any(ctx.needs_input_grad):
                saved.append(weights)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.blocks, ctx.first = blocks, first
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, k, v, *saved = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
        scale = q.shape[-1] ** -0.5
        for block, weights in zip(ctx.blocks, saved, strict=True):
            rows = slice(block.start - ctx.first, block.end - ctx.first)
            q_rows, grad_rows = q[:, :, rows], grad[:, :, rows]
            grad_weights = torch.matmul(grad_rows, _take(v, block.columns).transpose(-2, -1))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[:, :, rows] = torch.matmul(grad_scores, _take(k, block.columns)).mul_(scale)
            _add(grad_k, block.columns, torch.matmul(grad_scores.transpose(-2, -1), q_rows))
            _add(grad_v, block.columns, torch.matmul(weights.transpose(-2, -1), grad_rows))
        return grad_q, grad_k.mul_(scale).to(k.dtype), grad_v.to(v.dtype), None, None


def _take(x: Tensor, columns: list[tuple[int, int]]) -> Tensor:
    """Columns of x (B, N, T, H), in runs."""
    parts = [x[:, :, start:end] for start, end in columns]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _add(total: Tensor, columns: list[tuple[int, int]], part: Tensor) -> None:
    """The transpose of `_take`: add to those columns."""
    offset = 0
    for start, end in columns:
        total[:, :, start:end] += part[:, :, offset : offset + end - start]
        offset += end - start
