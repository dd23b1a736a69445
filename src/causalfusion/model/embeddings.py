"""How tokens enter the model: sinusoids, positions, timesteps, classes (PAPER section 2).

Shape letters: B images, n tokens, L image tokens, C class tokens, D width, H head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMESTEP_FREQUENCIES = 256


def sinusoid(values: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """(..., dim) cosines then sines of `values` at dim/2 geometric frequencies, float32."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[..., None].float() * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def sincos_positions(hidden_size: int, grid_height: int, grid_width: int) -> Tensor:
    """(L, D) fixed 2-D embedding: half the width for the column, half for the row; sines then cosines."""
    frequencies = 10_000.0 ** (-torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    row, column = torch.meshgrid(torch.arange(grid_height), torch.arange(grid_width), indexing="ij")
    parts = []
    for coordinate in (column, row):
        angles = coordinate.reshape(-1, 1).double() * frequencies
        parts += [torch.sin(angles), torch.cos(angles)]
    return torch.cat(parts, dim=1).float()


def rope_table(head_dim: int, grid_height: int, grid_width: int) -> Tensor:
    """(2, L, H) cosines and sines of 2-D rotary positions: half the head turns with rows, half otherwise."""
    frequencies = 100.0 ** (-torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim // 4))
    row, column = torch.meshgrid(torch.arange(grid_height), torch.arange(grid_width), indexing="ij")
    angles = torch.cat([c.reshape(-1, 1).double() * frequencies for c in (row, column)], dim=1)
    angles = angles.repeat(1, 2)
    return torch.stack([torch.cos(angles), torch.sin(angles)]).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs (i, i + H/2) of x (B, N, T, H) by `rotation` (2, 1 or B, 1, T, H)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * rotation[0] + turned * rotation[1]).to(x.dtype)


class TimestepEmbedding(nn.Module):
    """Sinusoidal 256 -> MLP with SiLU."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(TIMESTEP_FREQUENCIES, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B, n) -> (B, n, D)."""
        return self.fc2(F.silu(self.fc1(sinusoid(timesteps, TIMESTEP_FREQUENCIES))))


class ClassEmbedding(nn.Module):
    """Labels to C class tokens: one table row per class and one for null, plus the tokens' positions."""

    def __init__(self, num_classes: int, hidden_size: int, num_tokens: int, repeats: int) -> None:
        super().__init__()
        self.num_learned = num_tokens // repeats
        self.repeats = repeats
        self.table = nn.Embedding(num_classes + 1, self.num_learned * hidden_size)
        self.position = nn.Parameter(torch.zeros(num_tokens, hidden_size))

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, C, D); the learned tokens stand one after another, the whole row repeated."""
        tokens = self.table(labels).unflatten(-1, (self.num_learned, -1))
        return tokens.repeat(1, self.repeats, 1) + self.position
