"""AdaLN-zero: timestep and class shift, scale and gate what a block does.

Shape letters: B images, T packed tokens, R rows of modulation, A size of the condition, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


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
