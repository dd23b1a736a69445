"""Classifier-free guidance: how strongly, where on the path, and on which numbers of a token.

Shape letters: B images, n tokens of an AR step, P token dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.process import Process


@dataclass(frozen=True)
class Guidance:
    """Guidance within one AR step."""

    scale: float = 1.0
    """w in u + w (c - u), of the predictions with the condition, c, and without, u."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The shares of the path, 0 clean and 1 pure noise, between which it acts."""
    numbers: Tensor | None = None
    """(P or, with variances, 2 P) bool: what is guided of each token; the rest is c. None: all of it."""
    power: float = 0.0
    """p of a scale 1 + (w - 1) (1 - cos(π l^p)) / 2 at the share l of the path; 0: w everywhere."""

    def acts_at(self, share: float) -> bool:
        low, high = self.interval
        return self.scale != 1 and low <= share <= high

    def scale_at(self, share: float) -> float:
        if not self.power:
            return self.scale
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * share**self.power)) / 2

    def combine(self, conditional: Tensor, unconditional: Tensor, share: float = 1.0) -> Tensor:
        """(B, n, P) each, at a share of the path."""
        guided = unconditional + self.scale_at(share) * (conditional - unconditional)
        return guided if self.numbers is None else torch.where(self.numbers, guided, conditional)


NO_GUIDANCE = Guidance()


def guidance_of_steps(
    config: SampleConfig, sizes: Sequence[int], process: Process, guided_numbers: Tensor | None
) -> list[Guidance]:
    """The guidance of AR steps of these sizes; `guided_numbers` (P,) bool, or None for all of a token."""
    interval, numbers = process.guidance_range(config), guided_numbers
    if process.numbers_per_prediction == 2:
        if numbers is None:
            raise ValueError("guided_numbers is None; expected (P,): a predicted variance is never guided")
        numbers = torch.cat([numbers, torch.zeros_like(numbers)])
    power = config.guidance_power
    return [Guidance(scale, interval, numbers, power) for scale in guidance_scales(config, sizes)]


def guidance_scales(config: SampleConfig, sizes: Sequence[int]) -> list[float]:
    """w of every AR step: from 1 towards the full scale with the share of tokens done when it ends."""
    scales, done, total = [], 0, sum(sizes)
    for size in sizes:
        done += size
        progress = done / total
        if config.guidance_schedule == "constant":
            progress = 1.0
        elif config.guidance_schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        elif config.guidance_schedule == "masked_linear":
            progress = min(done, total - 1) / total
        scales.append(1 + (config.guidance_scale - 1) * progress)
    return scales
