"""LayerNorm or RMSNorm, with weights or without; and what training keeps in float32."""

from __future__ import annotations

from torch import nn

from causalfusion.config.parts import NormConfig, NormKind

Norm = nn.LayerNorm | nn.RMSNorm


def make_norm(size: int, kind: NormKind, learned: bool, eps: float) -> Norm:
    """A norm over the last `size` numbers."""
    if kind == "layer_norm":
        return nn.LayerNorm(size, eps=eps, elementwise_affine=learned)
    return nn.RMSNorm(size, eps=eps, elementwise_affine=learned)


def norm_of(config: NormConfig, size: int, adaln: bool) -> Norm:
    """The norm of a configuration, where AdaLN does or does not follow it."""
    return make_norm(size, config.kind, config.learned(adaln), config.eps)
