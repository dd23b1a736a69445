"""Learned variances of DDPM: the bound by its definition, and sampling with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from causalfusion.config import DiffusionConfig, SampleConfig
from causalfusion.diffusion.ddpm import DDPM

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
PROCESS = DDPM(DiffusionConfig(variance="learned_range"))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_the_bound_is_the_divergence_of_two_gaussians_in_bits(t: int) -> None:
    schedule = PROCESS.schedule
    clean, noise = normal(0, 1, 3, 2) * 0.3, normal(1, 1, 3, 2)
    tokens = PROCESS.noise(clean, noise, torch.tensor([t]))
    epsilon, v = normal(2, 1, 3, 2), normal(3, 1, 3, 2) * 0.5
    errors = PROCESS.errors(torch.cat([epsilon, v], dim=-1), tokens)
    bits = errors.double() - (epsilon.float() - noise.float()).square().double()
    before = schedule.alphas_cumprod[t - 1] if t else 1.0
    a, beta = schedule.alphas_cumprod[t], schedule.betas[t]
    posterior = beta * (1 - before) / (1 - a)
    floor = posterior if t else schedule.posterior_variance[1]
    share = (v + 1) / 2
    variance = beta**share * floor ** (1 - share)
    predicted = (tokens.noised - (1 - a) ** 0.5 * epsilon) / a**0.5
    of_clean, of_noised = before**0.5 * beta / (1 - a), (1 - beta) ** 0.5 * (1 - before) / (1 - a)
    mean, true = (of_clean * x + of_noised * tokens.noised for x in (predicted, clean))
    if t:
        expected = 0.5 * ((variance / posterior).log() - 1 + (posterior + (true - mean) ** 2) / variance)
    else:  # the probability of a grey level, the width of which is 2 / 255
        std = variance.sqrt().numpy()
        upper, lower = (norm.cdf(((clean - mean).numpy() + d) / std) for d in (1 / 255, -1 / 255))
        expected = torch.from_numpy(-np.log(np.clip(upper - lower, 1e-12, None)))
    # float32 cancels (true - mean)²; the tanh form of the normal distribution is good to 2e-4
    tolerance = 2e-2 if t == 0 else 1e-3
    torch.testing.assert_close(bits, expected / math.log(2), rtol=tolerance, atol=1e-4)


def test_the_bound_trains_the_variances_alone() -> None:
    clean, noise = normal(0, 2, 3, 2).float(), normal(1, 2, 3, 2).float()
    tokens = PROCESS.noise(clean, noise, torch.tensor([3, 700]))
    prediction = normal(2, 2, 3, 4).float().requires_grad_()
    PROCESS.errors(prediction, tokens).sum().backward()
    assert prediction.grad is not None
    of_mean, of_variance = prediction.grad.chunk(2, dim=-1)
    torch.testing.assert_close(of_mean, 2 * (prediction.detach()[..., :2] - noise))
    assert (of_variance != 0).all()


@pytest.mark.parametrize(("v", "kind"), [(1.0, "fixed_large"), (-1.0, "fixed_small")])
def test_the_ends_of_the_range_are_the_fixed_variances(v: float, kind: str) -> None:
    """At every step but the one to t = 0, whose β itself is above what `fixed_large` takes there."""
    fixed = DDPM(DiffusionConfig()).sampler(SampleConfig(variance=kind), 25)  # type: ignore[arg-type]
    learned = PROCESS.sampler(SampleConfig(), 25)
    noised, epsilon, noise = (normal(seed, 1, 2, 3) for seed in range(3))
    for index in range(25):
        both = torch.cat([epsilon, torch.full_like(epsilon, v)], dim=-1)
        ours, theirs = (
            sampler.step(index, noised, prediction, noise)
            for sampler, prediction in ((learned, both), (fixed, epsilon))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DDPM.samplers[1:])
def test_other_samplers_leave_the_variances_out(name: str) -> None:
    config = SampleConfig(sampler=name)  # type: ignore[arg-type]
    start, epsilon = normal(0, 1, 2, 3), normal(1, 1, 2, 3)
    with_variance = PROCESS.sampler(config, 5).step(0, start, torch.cat([epsilon, epsilon], dim=-1), None)
    without = DDPM(DiffusionConfig()).sampler(config, 5).step(0, start, epsilon, None)
    assert torch.equal(with_variance, without)
