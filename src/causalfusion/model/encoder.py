"""The first part of a transformer whose known and asked tokens meet halfway (MAR 2406.11838 section 4):
blocks that only known tokens go through, then positions anew for all.

Shape letters: B rows, C class tokens, L image tokens, n known tokens, E width of the encoder, D width of the
transformer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from causalfusion.config import ModelConfig
from causalfusion.model.attention import Attend
from causalfusion.model.block import Block
from causalfusion.model.norm import norm_of


def encoder_config(config: ModelConfig) -> ModelConfig:
    """The blocks of the encoder as a model of their own."""
    return replace(
        config,
        hidden_size=config.encoder_size,
        num_heads=config.encoder_heads,
        num_kv_heads=0,
        head_size=0,
        mlp_hidden=0,
        depth=config.encoder.depth,
    )


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, size = encoder_config(config), config.hidden_size
        self.blocks = nn.ModuleList([Block(inner) for _ in range(inner.depth)])
        self.norm_out = norm_of(config.out_norm, inner.hidden_size, False)
        self.proj = nn.Linear(inner.hidden_size, size)
        self.class_position = nn.Parameter(torch.empty(config.num_condition_tokens, size))
        self.image_position = nn.Parameter(torch.empty(config.num_tokens, size))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Known tokens (B, n, E) -> (B, n, D), still without their second positions."""
        for layer, block in enumerate(self.blocks):
            x = block(x, attend, layer)
        return self.proj(self.norm_out(x))
