"""Learned variances of DDPM's steps, in the range between β̃ and β (Nichol & Dhariwal, 2102.09672).

The model gives each number of a token a second one, v. With f = (v + 1) / 2, the logarithm of the variance is
f ln β + (1 - f) ln β̃. It is trained by the variational bound of its step, in bits.

Shapes: tokens (B, n, P); levels (B, 1) or (B, n), int64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from causalfusion.diffusion.schedule import NoiseSchedule, Table

_BIN = 1 / 255
"""Half the width of a grey level of images in [-1, 1]."""
_LEAST = 1e-12
"""Least probability whose logarithm is taken."""


def range_bounds(schedule: NoiseSchedule) -> tuple[Table, Table]:
    """(ln β̃, ln β) at each level; level 0 of the first has the value of level 1, its own being ln 0."""
    return schedule.posterior_log_variance_clipped, schedule.log_betas


def log_variance(variance: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """ln of the variances that the model's numbers v mean between the bounds of their level."""
    share = (variance + 1) / 2
    return share * high + (1 - share) * low


def variational_term(
    schedule: NoiseSchedule,
    predicted: Tensor,
    clean: Tensor,
    noised: Tensor,
    variance: Tensor,
    levels: Tensor,
) -> Tensor:
    """Bits for each number: the divergence of the model's step from the true one, at level 0 the likelihood
    of the data under a Gaussian cut into grey levels. `predicted`: x_0, without gradient; `variance`: v."""
    low = schedule.at("posterior_log_variance_clipped", levels, variance)
    log_var = log_variance(variance, low, schedule.at("log_betas", levels, variance))
    of_clean = schedule.at("posterior_mean_coef1", levels, variance)
    kept = schedule.at("posterior_mean_coef2", levels, variance) * noised
    mean, true_mean = of_clean * predicted + kept, of_clean * clean + kept
    distance = (true_mean - mean).square() * (-log_var).exp()
    divergence = 0.5 * (-1 + log_var - low + (low - log_var).exp() + distance)
    likelihood = grey_level_log_likelihood(clean, mean, 0.5 * log_var)
    return torch.where(
        schedule.at("timestep_map", levels, variance) == 0, -likelihood, divergence
    ) / math.log(2)


def grey_level_log_likelihood(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """ln of the probability that a Gaussian gives the grey level around `value`; the outermost are open."""
    inverse = (-log_std).exp()
    above = _normal_cdf((value - mean + _BIN) * inverse)
    below = _normal_cdf((value - mean - _BIN) * inverse)
    inside = (above - below).clamp(min=_LEAST).log()
    lowest = above.clamp(min=_LEAST).log()
    highest = (1 - below).clamp(min=_LEAST).log()
    return torch.where(value < -0.999, lowest, torch.where(value > 0.999, highest, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the released code, whose figures depend on it."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
