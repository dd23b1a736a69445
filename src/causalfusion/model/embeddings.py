"""Embeddings of timesteps and classes.

Shape letters: B images, n tokens, C class tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ModelConfig

TIMESTEP_FREQUENCIES = 256


def sinusoid(values: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """(..., dim) cosines then sines of `values` at dim/2 geometric frequencies, float32."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[..., None].float() * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoidal 256 -> MLP with SiLU."""

    def __init__(self, size: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(TIMESTEP_FREQUENCIES, size, bias=bias)
        self.fc2 = nn.Linear(size, size, bias=bias)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B, n) -> (B, n, D)."""
        return self.fc2(F.silu(self.fc1(sinusoid(timesteps, TIMESTEP_FREQUENCIES))))


class ClassEmbedding(nn.Module):
    """Labels to C class tokens: one table row per class and one for null, plus the tokens' positions."""

    def __init__(
        self, num_classes: int, size: int, num_tokens: int, repeats: int, positions: bool = True
    ) -> None:
        """Without `positions`, rotary embedding tells the tokens apart."""
        super().__init__()
        self.num_learned = num_tokens // repeats
        self.repeats = repeats
        self.table = nn.Embedding(num_classes + 1, self.num_learned * size)
        self.position = nn.Parameter(torch.zeros(num_tokens, size)) if positions else None

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, C, D); the learned tokens stand one after another, the whole row repeated."""
        tokens = self.table(labels).unflatten(-1, (self.num_learned, -1))
        tokens = tokens.repeat(1, self.repeats, 1)
        return tokens if self.position is None else tokens + self.position


def class_embedding_of(config: ModelConfig) -> nn.Module | None:
    """Class tokens, or with AdaLN-zero a row per class; None: the model ignores classes."""
    if config.conditioning == "adaln_zero":
        return nn.Embedding(config.num_classes + 1, config.condition_size)
    if not config.num_class_tokens or config.text_only:
        return None
    turned = config.position_embedding == "rope" and config.rope.axes == "raster"
    size = config.hidden_size if config.own_image_weights else config.encoder_size
    return ClassEmbedding(
        config.num_classes, size, config.num_class_tokens, config.class_token_repeats, positions=not turned
    )


def embed_text(ids: Tensor, text: nn.Embedding, markers: nn.Embedding | None) -> Tensor:
    """(B, n) ids -> (B, n, D); ids behind those of `text` are of `markers`, where these have an embedding of
    their own."""
    if markers is None:
        return text(ids)
    first = text.num_embeddings
    of_markers = markers((ids - first).clamp(min=0))
    return torch.where((ids >= first)[..., None], of_markers, text(ids.clamp(max=first - 1)))
