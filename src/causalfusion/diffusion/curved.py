"""Flows along curved paths: the quarter circle and DDPM's path in continuous time (Albergo et al.,
2303.08797; SiT, 2401.08740, section 3.1). Both keep the variance: α² + σ² = 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from causalfusion.config import PredictionType
from causalfusion.diffusion.flow import Flow
from causalfusion.diffusion.levels import fit

_BETA = (0.1, 20.0)
"""β of the variance-preserving path at clean data and at pure noise (Song et al., 2011.13456)."""
_CLEANEST = 1e-5
"""The variance-preserving path adds noise infinitely fast at level 0."""


class QuarterCircle(Flow):
    """x_l = cos(π l / 2) x_0 + sin(π l / 2) ε (`gvp`)."""

    def signal(self, levels: Tensor, like: Tensor) -> Tensor:
        return torch.cos(fit(levels, like) * (math.pi / 2))

    def noise_scale(self, levels: Tensor, like: Tensor) -> Tensor:
        return torch.sin(fit(levels, like) * (math.pi / 2))

    def signal_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        return -(math.pi / 2) * self.noise_scale(levels, like)

    def noise_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        return (math.pi / 2) * self.signal(levels, like)


class VariancePreserving(Flow):
    """ln α = -l² (20 - 0.1) / 4 - l 0.1 / 2 (`vp`): the limit of DDPM with linear β."""

    def _log_signal(self, levels: Tensor, like: Tensor) -> Tensor:
        level, (low, high) = fit(levels, like), _BETA
        return -0.25 * level**2 * (high - low) - 0.5 * level * low

    def signal(self, levels: Tensor, like: Tensor) -> Tensor:
        return self._log_signal(levels, like).exp()

    def noise_scale(self, levels: Tensor, like: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_signal(levels, like))).sqrt()

    def signal_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        level, (low, high) = fit(levels, like), _BETA
        return -0.5 * (low + level * (high - low)) * self.signal(levels, like)

    def noise_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        levels = levels.clamp(min=_CLEANEST)
        signal = self.signal(levels, like)
        return -signal * self.signal_slope(levels, like) / self.noise_scale(levels, like)

    def clean_factors(
        self, prediction_type: PredictionType, levels: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        if prediction_type != "velocity":
            return super().clean_factors(prediction_type, levels, like)
        squared = self.noise_scale(levels, like).square()
        return self.signal(levels, like), squared / self.signal_slope(levels, like)
