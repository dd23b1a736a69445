"""AdaLN-zero: timestep and class shift, scale and gate what a block does.

Shape letters: B rows, T packed tokens, n tokens of a segment, I images of a row, R rows of modulation, A size
of the condition, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.sequence import PackedSequence, Segment, take_rows


class Modulation(NamedTuple):
    """The conditions of a sequence: R different rows, and which of them each of the T tokens uses."""

    rows: Tensor
    """(B, R, A)."""
    row_of_token: Tensor
    """(1 or B, T) int64."""
    shared: Tensor | None = None
    """(B, R, 6 D): the modulation that all blocks share; None: each block has its own alone."""

    def of_tokens(self, values: Tensor, first: int = 0) -> Tensor:
        """(B, T - first, D): of values (B, R, D) of the conditions those of each token from the first on."""
        index = self.row_of_token[:, first:]
        return values[:, index[0]] if len(index) == 1 else take_rows(values, index)


def make_modulation(size: int, outputs: int, bias: bool, rank: int = 0) -> nn.Linear | nn.Sequential:
    """From the SiLU of conditions (B, R, A) to (B, R, outputs): a linear layer, or two through `rank`
    numbers."""
    if not rank:
        return nn.Linear(size, outputs, bias=bias)
    return nn.Sequential(nn.Linear(size, rank, bias=bias), nn.Linear(rank, outputs, bias=bias))


def zero_modulation(layers: nn.Linear | nn.Sequential) -> None:
    """Let it begin as zero, so that blocks begin as the identity."""
    last = layers if isinstance(layers, nn.Linear) else layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, T, D), shifted and scaled."""
    return x * (1 + scale) + shift


def sequence_modulation(
    sequence: PackedSequence, classes: nn.Module, timesteps: nn.Module | None, shared: nn.Module | None
) -> Modulation:
    """The conditions of a sequence, embedded: class plus, for noised tokens, timestep; a row per segment, per
    image of a row or per token."""
    labels = next(s.values for s in sequence.segments if s.kind == "class")
    of_classes = classes(labels if labels.dim() == 2 else labels[:, None])
    rows, row_of_token, start = [], [], 0
    for segment in sequence.segments:
        if segment.num_tokens:
            part, index = _condition_of(segment, of_classes, timesteps)
            row_of_token.append(start + index)
            rows.append(part)
            start += part.shape[1]
    of_rows, count = torch.cat(rows, dim=1), max(map(len, row_of_token))
    index = torch.cat([index.expand(count, -1) for index in row_of_token], dim=1)
    return Modulation(of_rows, index, None if shared is None else shared(F.silu(of_rows)))


def _condition_of(segment: Segment, classes: Tensor, timesteps: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Conditions of a segment, (B, R, A), with those of `classes` (B, 1 or I, A), and which each token has,
    (1 or B, n)."""
    each = torch.arange(segment.num_tokens, device=classes.device)[None]
    of_image = torch.zeros_like(each) if segment.owner is None else segment.owner.clamp(min=0)
    if segment.timesteps is None or timesteps is None:
        return classes, of_image
    told = timesteps(segment.timesteps)
    if told.shape[1] > 1 and told.shape[1] == segment.num_tokens:
        return segment.of_tokens(classes) + told, each
    return classes + told, of_image
