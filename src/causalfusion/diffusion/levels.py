"""Noise levels as shares of the path, 0 clean and 1 pure noise: drawn for training, shifted, shaped."""

from __future__ import annotations

import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig


def draw_unit_levels(config: DiffusionConfig, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Levels in [0, 1], float32: uniform, or the logistic function of a normal variable (Esser et al.,
    2403.03206), then shifted, then squeezed into `level_range`."""
    if config.level_distribution == "uniform":
        levels = torch.rand(shape, generator=generator)
    else:
        normal = torch.randn(shape, generator=generator)
        levels = torch.sigmoid(config.level_mean + config.level_std * normal)
    low, high = config.level_range
    return low + (high - low) * shift_levels(levels, config.level_shift)


def shift_levels(levels: Tensor, shift: float) -> Tensor:
    """s l / (1 + (s - 1) l): with s > 1 more levels are noisy, as longer sequences need (2403.03206)."""
    return levels if shift == 1 else shift * levels / (1 + (shift - 1) * levels)


def divided(ends: Tensor, points: int) -> Tensor:
    """(n * points,) of increasing numbers (n + 1,): each of them but the first, and what divides the distance
    to the one before it evenly."""
    shares = torch.arange(1, points + 1, dtype=ends.dtype) / points
    return (ends[:-1, None] + torch.diff(ends)[:, None] * shares).flatten()


def fit(values: Tensor, like: Tensor) -> Tensor:
    """One value per level, shaped to multiply `like`, on its device and in its dtype."""
    values = values.to(like.device, like.dtype)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
