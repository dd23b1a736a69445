from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType, SampleConfig, SamplerName
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.samplers import LinearSampler, Sampler, begun_at
from causalfusion.errors import UserError

PARITY = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
PROCESS = DDPM(DiffusionConfig())
SCHEDULE = PROCESS.schedule
SAMPLERS = DDPM.samplers
MEAN, STD = 0.7, 0.5
"""The data of the closed forms: every element is N(MEAN, STD²)."""


def exact_epsilon(noised: Tensor, timestep: int) -> Tensor:
    """E[ε | x_t] for Gaussian data: x_t and ε are jointly Gaussian."""
    alpha_bar = float(SCHEDULE.alphas_cumprod[timestep])
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    return (1 - alpha_bar) ** 0.5 * (noised - alpha_bar**0.5 * MEAN) / variance


def exact_prediction(noised: Tensor, timestep: int, kind: PredictionType) -> Tensor:
    epsilon = exact_epsilon(noised, timestep)
    levels = torch.full((len(noised),), timestep)
    clean = PROCESS.to_clean(epsilon, noised, levels)
    return predicting(kind).target(clean, epsilon, levels)


def predicting(kind: PredictionType) -> DDPM:
    return DDPM(DiffusionConfig(prediction_type=kind))


def linear(config: SampleConfig, num_steps: int) -> LinearSampler:
    sampler = PROCESS.sampler(config, num_steps)
    assert isinstance(sampler, LinearSampler)
    return sampler


def run(sampler: Sampler, start: Tensor, kind: PredictionType = "epsilon", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noised = start
    for index, timestep in enumerate(map(int, sampler.timesteps)):
        noise = torch.randn(noised.shape, generator=generator, dtype=noised.dtype)
        prediction = exact_prediction(noised, timestep, kind)
        noised = sampler.step(index, noised, prediction, noise if sampler.needs_noise else None)
    return noised


def exact_flow(start: Tensor) -> Tensor:
    """Where the probability flow takes x_T: for Gaussian data it keeps (x - mean_t) / std_t."""
    alpha_bar = float(SCHEDULE.alphas_cumprod[-1])
    return MEAN + STD * (start - alpha_bar**0.5 * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar) ** 0.5


def flow_error(name: SamplerName, num_steps: int) -> float:
    config = SampleConfig(sampler=name)
    start = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(2, 8, 4)
    end = run(PROCESS.sampler(config, num_steps), start)
    return float((end - exact_flow(start)).abs().max())


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_ancestral_sampling_replays_the_recorded_trajectory(case: str) -> None:
    path = PARITY / f"{case}.sample.safetensors"
    if not path.exists():
        pytest.skip(f"no recordings at {path}")
    with safe_open(path, "pt") as file:
        respace = file.metadata()["respace"]
        recorded = {
            name: file.get_tensor(name) for name in ("z", "eps_seq", "noise_seq", "xt_seq", "pred_x0_seq")
        }
        t_model = file.get_tensor("t_model").tolist()
    sampler = PROCESS.sampler(SampleConfig(respacing=respace), len(t_model))
    assert sampler.timesteps == t_model
    assert PROCESS.sampler(SampleConfig(), int(respace)) == sampler

    noised = recorded["z"]
    for index, timestep in enumerate(sampler.timesteps):
        epsilon = recorded["eps_seq"][index]
        clean = PROCESS.to_clean(epsilon, noised, torch.tensor(timestep))
        noised = sampler.step(index, noised, epsilon, recorded["noise_seq"][index])
        for actual, name in ((clean, "pred_x0_seq"), (noised, "xt_seq")):
            expected = recorded[name][index]
            assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max(), (name, index)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_ancestral_mean_and_variance_follow_the_textbook_recursion(
    variance: Literal["fixed_large", "fixed_small"], num_steps: int
) -> None:
    """x_{t-1} ~ N(posterior mean at E[x_0 | x_t], σ²) is linear and Gaussian: mean and variance are exact."""
    schedule = SCHEDULE.respace(num_steps)
    mean, var = 0.0, 1.0
    for k in reversed(range(num_steps)):
        a, before = schedule.alphas_cumprod[k], schedule.alphas_cumprod[k - 1] if k else 1.0
        gain = a**0.5 * STD**2 / (a * STD**2 + 1 - a)  # E[x_0 | x_t] = MEAN + gain (x_t - sqrt(a) MEAN)
        beta = 1 - a / before
        c_clean, c_noised = before**0.5 * beta / (1 - a), (1 - beta) ** 0.5 * (1 - before) / (1 - a)
        slope = c_noised + c_clean * gain
        mean = slope * mean + c_clean * (MEAN - gain * a**0.5 * MEAN)
        sigma2 = 0.0 if k == 0 else beta if variance == "fixed_large" else beta * (1 - before) / (1 - a)
        var = slope**2 * var + sigma2

    config = SampleConfig(variance=variance)
    sampler = PROCESS.sampler(config, num_steps)
    start = torch.randn(1, 100, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end = run(sampler, start)
    error = (var / start.numel()) ** 0.5
    assert abs(float(end.mean()) - mean) < 4 * error
    assert float(end.var()) == pytest.approx(var, rel=4 * (2 / start.numel()) ** 0.5)
    # Without the randomness the mean is met to rounding.
    assert isinstance(sampler, LinearSampler)
    quiet = replace(sampler, of_noise=[0.0] * num_steps)
    assert float(run(quiet, torch.zeros(1, 1, 1, dtype=torch.float64))) == pytest.approx(mean, abs=1e-12)
    if num_steps == 25 and variance == "fixed_large":
        assert mean == pytest.approx(MEAN, abs=0.02)  # and the recursion itself ends near the data


def test_ddim_converges_to_the_probability_flow_at_first_order() -> None:
    errors = [flow_error("ddim", n) for n in (50, 100, 200, 400)]
    for coarse, fine in pairwise(errors):
        assert 0.4 < fine / coarse < 0.6


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_multistep_solvers_beat_ddim_at_few_steps(name: SamplerName) -> None:
    for num_steps, factor in ((5, 0.9), (10, 0.75), (20, 0.5), (50, 0.2)):
        assert flow_error(name, num_steps) < factor * flow_error("ddim", num_steps)
    assert flow_error(name, 250) < 2e-3


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_prediction_type_does_not_change_the_samples(name: SamplerName, kind: PredictionType) -> None:
    config = SampleConfig(sampler=name)
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_epsilon = run(PROCESS.sampler(config, 12), start)
    by_kind = run(predicting(kind).sampler(config, 12), start, kind)
    torch.testing.assert_close(by_kind, by_epsilon, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 14, 15, 49, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_is_finite_and_ends_on_the_last_predicted_clean_data(
    name: SamplerName, num_steps: int
) -> None:
    config = SampleConfig(sampler=name)
    process = DDPM(DiffusionConfig(num_timesteps=50, beta_end=0.3, prediction_type="sample"))
    sampler = process.sampler(config, num_steps)
    timesteps = sampler.timesteps
    assert len(timesteps) == num_steps and timesteps[0] == 49
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert sampler.needs_noise == (name == "ddpm" and num_steps > 1)
    noised = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))
    prediction = noised
    for index in range(num_steps):
        prediction = torch.sin(noised + index)
        noised = sampler.step(index, noised, prediction, torch.ones_like(noised))
        assert noised.isfinite().all() and noised.dtype == torch.float32
    torch.testing.assert_close(noised, prediction, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_steps", [2, 10, 250])
def test_ddim_with_eta_1_is_ddpm_with_the_posterior_variance(num_steps: int) -> None:
    schedule = SCHEDULE.respace(num_steps)
    stochastic = linear(SampleConfig(sampler="ddim", eta=1.0), num_steps)
    ancestral = linear(SampleConfig(variance="fixed_small"), num_steps)
    for name in ("of_clean", "of_noised", "of_noise"):
        np.testing.assert_allclose(getattr(stochastic, name), getattr(ancestral, name), rtol=1e-9, atol=1e-14)
    # DDIM equation 16, written out.
    a, before = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    half = linear(SampleConfig(sampler="ddim", eta=0.5), num_steps)
    sigma = 0.5 * np.sqrt((1 - before) / (1 - a)) * np.sqrt(1 - a / before)
    np.testing.assert_allclose(half.of_noise, sigma[::-1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_begun_on_the_way_is_the_rest_of_the_whole(name: SamplerName) -> None:
    """Exactly, where a step remembers nothing of those before; else it lands where the flow does."""
    whole = PROCESS.sampler(SampleConfig(sampler=name), 50)
    rest = begun_at(whole, 0.6)
    assert rest is not None and 0.57 < rest.shares[0] <= 0.6
    first = len(whole.shares) - len(rest.shares)
    assert list(rest.timesteps) == list(whole.timesteps[first:])
    alpha_bar = float(SCHEDULE.alphas_cumprod[int(rest.timesteps[0])])
    start = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(2, 8, 4)
    state = alpha_bar**0.5 * MEAN + (alpha_bar * STD**2 + 1 - alpha_bar) ** 0.5 * start
    if name in ("dpm++", "unipc"):
        assert float((run(rest, state) - (MEAN + STD * start)).abs().max()) < 5e-3
        return
    assert isinstance(whole, LinearSampler)
    ends = []
    for sampler, calls in ((rest, range(len(rest.shares))), (whole, range(first, len(whole.shares)))):
        noised = state
        for index in calls:
            prediction = exact_prediction(noised, int(sampler.timesteps[index]), "epsilon")
            noised = sampler.step(index, noised, prediction, torch.ones_like(noised))
        ends.append(noised)
    assert torch.equal(*ends)


def test_temperature_scales_the_added_noise_only() -> None:
    warm = PROCESS.sampler(SampleConfig(), 8)
    cool = PROCESS.sampler(SampleConfig(temperature=0.5), 8)
    frozen = PROCESS.sampler(SampleConfig(temperature=0.0), 8)
    assert isinstance(warm, LinearSampler) and isinstance(cool, LinearSampler)
    assert cool == replace(warm, of_noise=[0.5 * factor for factor in warm.of_noise])
    assert warm.of_noise[-1] == 0 and not frozen.needs_noise


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_multistep_steps_come_in_order_and_instances_share_nothing(name: SamplerName) -> None:
    config = SampleConfig(sampler=name)
    start = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(4))
    used = PROCESS.sampler(config, 5)
    first = run(used, start)
    with pytest.raises(ValueError, match="in order"):
        used.step(0, start, start, None)
    assert torch.equal(run(PROCESS.sampler(config, 5), start), first)


def test_what_cannot_be_sampled_is_refused() -> None:
    for name in SAMPLERS:
        with pytest.raises(UserError, match="1 to 1000"):
            PROCESS.sampler(SampleConfig(sampler=name), 1001)
    with pytest.raises(UserError, match="eta"):
        PROCESS.sampler(SampleConfig(sampler="ddim", eta=3.0), 10)
    with pytest.raises(ValueError, match="noise"):
        PROCESS.sampler(SampleConfig(), 2).step(0, torch.ones(1), torch.ones(1), None)
