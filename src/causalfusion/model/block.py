"""A block of the transformer, and what it costs: whoever changes the one finds the other beneath it.

Shape letters: B rows, T packed tokens, D width, R rows of modulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ModelConfig
from causalfusion.model.attention import Attend, Attention
from causalfusion.model.feed_forward import FeedForward


class Modulation(NamedTuple):
    """AdaLN-zero's conditions: R different rows, and which of them each of the T tokens uses."""

    rows: Tensor
    """(B, R, D)."""
    row_of_token: Tensor
    """(T,) int64."""


class Block(nn.Module):
    """Pre-norm attention and MLP. With AdaLN-zero, the condition shifts, scales and gates both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        adaln = config.conditioning == "adaln_zero"
        self.norm1 = nn.LayerNorm(config.hidden_size, elementwise_affine=not adaln)
        self.attn = Attention(config.hidden_size, config.num_heads, config.qk_norm)
        self.norm2 = nn.LayerNorm(config.hidden_size, elementwise_affine=not adaln)
        self.mlp = FeedForward(config.hidden_size, config.mlp_ratio)
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size) if adaln else None

    def forward(
        self,
        x: Tensor,
        attend: Attend,
        layer: int,
        first_query: int = 0,
        rotation: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T - first_query, D): the rows before first_query are only attended to."""
        if self.modulation is None or modulation is None:
            h = self.attn(self.norm1(x), attend, layer, first_query, rotation)
            x = x[:, first_query:] + h
            return x + self.mlp(self.norm2(x))
        chunks = self.modulation(F.silu(modulation.rows))[:, modulation.row_of_token].chunk(6, dim=-1)
        shift, scale = chunks[:2]
        gate, mlp_shift, mlp_scale, mlp_gate = (chunk[:, first_query:] for chunk in chunks[2:])
        h = self.attn(self.norm1(x) * (1 + scale) + shift, attend, layer, first_query, rotation)
        x = x[:, first_query:] + gate * h
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)

    def norms(self) -> Iterator[nn.LayerNorm]:
        """The norms with weights of their own, which compute in float32 whatever precision the block has."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                yield module


@dataclass(frozen=True)
class BlockCost:
    """Arithmetic and memory of a block, as formulas of the model's sizes; tests hold them to what torch
    counts and allocates."""

    config: ModelConfig

    @property
    def matrix_weights(self) -> float:
        """Number of weights in its matrices."""
        return self.config.hidden_size**2 * (4 + 2 * self.config.mlp_ratio)

    def flops(self, key_rows: float, query_rows: float, pairs: float) -> float:
        """Forward: keys and values of `key_rows` rows, the rest for `query_rows`, `pairs` of attention."""
        size = self.config.hidden_size
        hidden = int(size * self.config.mlp_ratio)
        linear = 2 * key_rows * size * 2 * size + 2 * query_rows * size * (2 * size + 2 * hidden)
        return linear + 4 * pairs * size

    def row_bytes(self, low: bool, on_gpu: bool) -> float:
        """Bytes that it keeps for each row until the backward pass; `low`: in bfloat16. In units of D: the
        residual stream before attention and before the MLP (2), the input of qkv (1), its output (3),
        normalised q and k (2), the input of attention's output projection (1), that of the MLP (1), and twice
        its hidden layer (2 M).

        In bfloat16 the residual stream stays float32. A GPU also keeps the output of attention before its
        heads are merged and, in bfloat16, the float32 q and k before normalisation.
        """
        model = self.config
        numbers = 8 + 2 * model.mlp_ratio - 2 * (not model.qk_norm)
        if on_gpu:
            numbers += 1
        of_each = (2 if low else 4) * numbers + 2 * 4
        if on_gpu and low and model.qk_norm:
            of_each += 2 * 4
        if model.conditioning == "adaln_zero":
            of_each += 28 if low else 48
        statistics = 4 + (4 * model.num_heads if model.qk_norm else 0) + (model.num_heads if on_gpu else 0)
        return of_each * model.hidden_size + 4 * statistics

    def key_bytes(self, low: bool) -> float:
        """Bytes for each row of the last block that is only attended to: residual, input, k and v, normalised
        k."""
        return self.config.hidden_size * (4 + (2 if low else 4) * (4 if self.config.qk_norm else 3))
