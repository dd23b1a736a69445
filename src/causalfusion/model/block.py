"""A block of the transformer.

Shape letters: B rows, T packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ImageWeightsConfig, LoraConfig, ModelConfig
from causalfusion.model.attention import Attend, Attention
from causalfusion.model.feed_forward import feed_forward_of
from causalfusion.model.modulation import Modulation, make_modulation, modulate
from causalfusion.model.norm import Norm, norm_of
from causalfusion.model.streams import Rows, Streams

X = TypeVar("X", Tensor, Rows)


def image_block_config(config: ModelConfig) -> ModelConfig:
    """The weights of image tokens in a block as those of a model of their own."""
    return replace(
        config,
        hidden_size=config.image_size,
        head_size=config.head_dim,
        mlp_hidden=config.image_mlp_size,
        image_weights=ImageWeightsConfig(),
        lora=LoraConfig(),
    )


class Block(nn.Module):
    """Pre-norm attention and MLP. With AdaLN-zero, the condition shifts, scales and gates both. Image tokens
    may have weights of their own."""

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
        self.image = Block(image_block_config(config)) if config.own_image_weights else None

    def forward(
        self,
        x: X,
        attend: Attend,
        layer: int,
        first_query: int = 0,
        rotation: Tensor | None = None,
        modulation: Modulation | None = None,
        streams: Streams | None = None,
    ) -> X:
        """x (B, T, D), or in two streams -> (B, T - first_query, D): the rows before first_query are only
        attended to."""
        if isinstance(x, Rows):
            assert streams is not None
            return self._two_streams(x, attend, layer, first_query, rotation, streams)
        if modulation is None:
            q, k, v = self.attn.split(self.norm1(x), first_query, rotation)
            return self._finish(x[:, first_query:], attend(layer, q, k, v))
        chunks = self._modulations(modulation).chunk(6, dim=-1)
        shift, scale = chunks[:2]
        gate, mlp_shift, mlp_scale, mlp_gate = (chunk[:, first_query:] for chunk in chunks[2:])
        h = self.attn(modulate(self.norm1(x), shift, scale), attend, layer, first_query, rotation)
        x = x[:, first_query:] + gate * self._drop(h)
        return x + mlp_gate * self._drop(self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale)))

    def _finish(self, x: Tensor, out: Tensor) -> Tensor:
        """x (B, Q, D) with what attention gave for it (B, N, Q, H), and the MLP."""
        x = x + self._drop(self.attn.merge(out))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _two_streams(
        self, x: Rows, attend: Attend, layer: int, first: int, rotation: Tensor | None, streams: Streams
    ) -> Rows:
        assert self.image is not None
        firsts, turns = streams.before(first), (None, None)
        if rotation is not None:
            turns = streams.split(rotation, dim=3)
        text = self.attn.split(self.norm1(x.text), firsts[0], turns[0])
        image = self.image.attn.split(self.image.norm1(x.image), firsts[1], turns[1])
        q = streams.join(text[0], image[0], 2, first)
        k, v = (
            streams.join(of_text, of_image.to(of_text.dtype), 2)
            for of_text, of_image in zip(text[1:], image[1:], strict=True)
        )
        of_text, of_image = streams.split(attend(layer, q, k, v), 2, first)
        if streams.text_alone and not any(part.requires_grad for part in text):
            of_text = of_text.detach()  # else a gradient of zero would go through the whole text
        return Rows(
            self._finish(x.text[:, firsts[0] :], of_text),
            self.image._finish(x.image[:, firsts[1] :], of_image),
        )

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
