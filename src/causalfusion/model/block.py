"""A block of the transformer.

Shape letters: B rows, T packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ModelConfig
from causalfusion.model.attention import Attend, Attention
from causalfusion.model.feed_forward import feed_forward_of
from causalfusion.model.modulation import Modulation, make_modulation, modulate
from causalfusion.model.norm import Norm, norm_of


class Block(nn.Module):
    """Pre-norm attention and MLP. With AdaLN-zero, the condition shifts, scales and gates both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, adaln = config.hidden_size, config.conditioning == "adaln_zero"
        self.dropout = config.dropout
        self.norm1 = norm_of(config.norm, size, adaln)
        self.attn = Attention(config)
        self.norm2 = norm_of(config.norm, size, adaln)
        self.mlp = feed_forward_of(config)
        self.modulation = (
            make_modulation(config.condition_size, 6 * size, config.bias.condition, config.adaln_rank)
            if adaln
            else None
        )

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
        if modulation is None:
            h = self.attn(self.norm1(x), attend, layer, first_query, rotation)
            x = x[:, first_query:] + self._drop(h)
            return x + self._drop(self.mlp(self.norm2(x)))
        chunks = self._modulations(modulation).chunk(6, dim=-1)
        shift, scale = chunks[:2]
        gate, mlp_shift, mlp_scale, mlp_gate = (chunk[:, first_query:] for chunk in chunks[2:])
        h = self.attn(modulate(self.norm1(x), shift, scale), attend, layer, first_query, rotation)
        x = x[:, first_query:] + gate * self._drop(h)
        return x + mlp_gate * self._drop(self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale)))

    def _modulations(self, modulation: Modulation) -> Tensor:
        """(B, T, 6 D): shift, scale and gate of attention, then of the MLP, for every token."""
        assert self.modulation is not None
        rows = self.modulation(F.silu(modulation.rows))
        if modulation.shared is not None:
            rows = rows + modulation.shared
        return modulation.of_tokens(rows)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def norms(self) -> Iterator[Norm]:
        """The norms with weights of their own, which compute in float32 whatever precision the block has."""
        for module in self.modules():
            if isinstance(module, Norm) and module.elementwise_affine:
                yield module
