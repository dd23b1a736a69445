"""Rotary positions of text, with the ways in which language models stretch them to longer sequences: position
interpolation (2306.15595), NTK-aware base, YaRN (2309.00071), Llama 3.1, LongRoPE (2402.13753).

All in float32, as language models are trained with.

Shape letters: B rows, T tokens, H head size, F = H/2 frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from causalfusion.config import LanguageConfig, ScalingConfig


def text_rotation(places: Tensor, lengths: Tensor, config: LanguageConfig, head_dim: int) -> Tensor:
    """(2, 1 or B, T, H) float32: cosines and sines of tokens at text places (1 or B, T), in rows whose texts
    have `lengths` (1 or B,) places."""
    frequencies = text_frequencies(config, head_dim, lengths)
    angles = places[..., None].float() * frequencies[:, None]
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()]) * config.scaling.attention


def text_frequencies(config: LanguageConfig, head_dim: int, lengths: Tensor) -> Tensor:
    """(1 or B, F) float32 frequencies, for rows of `lengths` (1 or B,) places."""
    scaling = config.scaling
    exponents = torch.arange(0, head_dim, 2, device=lengths.device).float() / head_dim
    if scaling.kind == "dynamic":
        return 1 / _grown_base(config, head_dim, lengths)[:, None] ** exponents
    own = 1 / config.rope_base**exponents
    if scaling.kind == "longrope":
        short, long = (torch.tensor(f, device=lengths.device) for f in (scaling.short, scaling.long))
        longer = (lengths > scaling.trained_length)[:, None]
        return 1 / (torch.where(longer, long, short) * config.rope_base**exponents)
    if scaling.kind == "linear":
        own = own / scaling.factor
    elif scaling.kind in ("yarn", "llama3"):
        keep = _kept_of_range(config, head_dim) if scaling.kind == "yarn" else _kept_by_turns(own, scaling)
        keep = keep.to(own.device)
        own = own / scaling.factor * (1 - keep) + own * keep
    return own[None]


def _grown_base(config: LanguageConfig, head_dim: int, lengths: Tensor) -> Tensor:
    """(1 or B,) float32: the base, grown so that the slowest frequency is that of interpolation."""
    scaling = config.scaling
    stretch = lengths.clamp(min=scaling.trained_length).float() / scaling.trained_length
    grown = scaling.factor * stretch - (scaling.factor - 1)
    return config.rope_base * grown ** (head_dim / (head_dim - 2))


def _kept_by_turns(own: Tensor, scaling: ScalingConfig) -> Tensor:
    """(F,): the part of each frequency that stays, linear in its turns between slow and fast (Llama 3.1)."""
    turns = scaling.trained_length / (2 * math.pi / own)
    return ((turns - scaling.slow) / (scaling.fast - scaling.slow)).clamp(0, 1)


def _kept_of_range(config: LanguageConfig, head_dim: int) -> Tensor:
    """(F,): the part of each frequency that stays, linear in its index between fast and slow (YaRN)."""
    scaling = config.scaling

    def index_of(turns: float) -> float:
        wavelength = scaling.trained_length / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(config.rope_base))

    first, last = index_of(scaling.fast), index_of(scaling.slow)
    if scaling.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001  # a range of one frequency
    return 1 - ((torch.arange(head_dim // 2).float() - first) / width).clamp(0, 1)
