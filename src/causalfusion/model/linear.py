"""A linear layer, with or without a low-rank addition (2106.09685).

Shape letters: I inputs, O outputs, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from causalfusion.config import LoraConfig


class Linear(nn.Linear):
    """A linear layer of which a part of the outputs can be computed alone."""

    def part(self, x: Tensor, start: int, end: int | None = None) -> Tensor:
        """Outputs `start` to `end` of x (..., I)."""
        rows = slice(start, end)
        return F.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])


class LoraLinear(Linear):
    """W x + b + scale B A x, where B begins as zero."""

    def __init__(self, inputs: int, outputs: int, bias: bool, lora: LoraConfig) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.scale = lora.scale
        self.lora_a = nn.Parameter(torch.empty(lora.rank, inputs))
        self.lora_b = nn.Parameter(torch.empty(outputs, lora.rank))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self._addition(input, slice(None))

    def part(self, x: Tensor, start: int, end: int | None = None) -> Tensor:
        return super().part(x, start, end) + self._addition(x, slice(start, end))

    def _addition(self, x: Tensor, rows: slice) -> Tensor:
        return F.linear(F.linear(x, self.lora_a), self.lora_b[rows]) * self.scale

    def init_addition(self, generator: torch.Generator | None) -> None:
        nn.init.xavier_uniform_(self.lora_a, generator=generator)
        nn.init.zeros_(self.lora_b)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """(O, I): the weight of a plain layer that computes the same."""
        return self.weight + self.scale * self.lora_b @ self.lora_a


def is_quantized(weight: Tensor) -> bool:
    """True for a weight that is no plain tensor (`quantized.py`), which kernels of our own cannot read."""
    return is_traceable_wrapper_subclass(weight)


def make_linear(inputs: int, outputs: int, bias: bool, lora: LoraConfig) -> Linear:
    return LoraLinear(inputs, outputs, bias, lora) if lora.rank else Linear(inputs, outputs, bias=bias)
