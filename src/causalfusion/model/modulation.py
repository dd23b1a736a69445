"""AdaLN-zero: timestep and class shift, scale and gate what a block does.

Shape letters: B images, T packed tokens, R rows of modulation, A size of the condition, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.sequence import PackedSequence


class Modulation(NamedTuple):
    """The conditions of a sequence: R different rows, and which of them each of the T tokens uses."""

    rows: Tensor
    """(B, R, A)."""
    row_of_token: Tensor
    """(T,) int64."""
    shared: Tensor | None = None
    """(B, R, 6 D): the modulation that all blocks share; None: each block has its own alone."""


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
    """The conditions of a sequence, embedded: class plus, for noised tokens, timestep; a row per segment or
    per token."""
    labels = next(s.values for s in sequence.segments if s.kind == "class")
    condition = classes(labels)[:, None]
    rows, row_of_token, start = [], [], 0
    for segment in sequence.segments:
        if not segment.num_tokens:
            continue
        part = condition
        if segment.timesteps is not None and timesteps is not None:
            part = condition + timesteps(segment.timesteps)
        index = torch.arange(segment.num_tokens, device=labels.device)
        row_of_token.append(start + (index if part.shape[1] > 1 else torch.zeros_like(index)))
        rows.append(part)
        start += part.shape[1]
    of_rows = torch.cat(rows, dim=1)
    return Modulation(of_rows, torch.cat(row_of_token), None if shared is None else shared(F.silu(of_rows)))
