from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.config import DiffusionConfig, PredictionType
from causalfusion.diffusion.prediction import (
    add_noise,
    level_weights,
    to_clean,
    to_epsilon,
    training_target,
)  # fmt: skip
from causalfusion.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.from_config(DiffusionConfig())
TYPES: tuple[PredictionType, ...] = get_args(PredictionType)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(0, 2**20), st.sampled_from(TYPES))
def test_conversions_are_inverse_to_the_target(timestep: int, seed: int, kind: PredictionType) -> None:
    clean, noise = draw(seed, 2, 3, 5), draw(seed + 1, 2, 3, 5)
    timesteps = torch.tensor([timestep, 999 - timestep])
    noised = add_noise(clean, noise, timesteps, SCHEDULE)
    target = training_target(clean, noise, timesteps, SCHEDULE, kind)
    # 1 / sqrt(ᾱ_999) is 157 and 1 / sqrt(1 - ᾱ_0) is 100: rounding grows by no more than that.
    torch.testing.assert_close(to_clean(target, noised, timesteps, SCHEDULE, kind), clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        to_epsilon(target, noised, timesteps, SCHEDULE, kind), noise, rtol=0, atol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(0, 8), st.sampled_from(TYPES))
def test_guidance_commutes_with_conversion(timestep: int, scale: float, kind: PredictionType) -> None:
    noised, conditional, unconditional = draw(timestep, 3, 2, 4, 3)
    timesteps = torch.full((2,), timestep)
    for convert in (to_clean, to_epsilon):
        guided = convert(
            unconditional + scale * (conditional - unconditional), noised, timesteps, SCHEDULE, kind
        )
        first = convert(unconditional, noised, timesteps, SCHEDULE, kind)
        second = convert(conditional, noised, timesteps, SCHEDULE, kind)
        torch.testing.assert_close(guided, first + scale * (second - first), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("timesteps", [torch.tensor([0, 999]), torch.tensor([[0, 5, 999], [1, 2, 3]])])
def test_noise_and_v_follow_the_formulas_element_by_element(timesteps: torch.Tensor) -> None:
    clean, noise = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    noised = add_noise(clean, noise, timesteps, SCHEDULE)
    v = training_target(clean, noise, timesteps, SCHEDULE, "v_prediction")
    for b in range(2):
        for i in range(3):
            t = int(timesteps[b] if timesteps.ndim == 1 else timesteps[b, i])
            alpha_bar = 1.0
            for s in range(t + 1):
                alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * s / 999)
            signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
            torch.testing.assert_close(noised[b, i], signal * clean[b, i] + sigma * noise[b, i])
            torch.testing.assert_close(v[b, i], signal * noise[b, i] - sigma * clean[b, i])


def test_latents_take_one_timestep_per_image() -> None:
    clean, noise = draw(0, 2, 4, 3, 3), draw(1, 2, 4, 3, 3)
    noised = add_noise(clean, noise, torch.tensor([3, 700]), SCHEDULE)
    alone = add_noise(clean[1:], noise[1:], torch.tensor([700]), SCHEDULE)
    assert torch.equal(noised[1:], alone)


def test_factors_are_cast_once_and_half_predictions_join_in_float32() -> None:
    noised, timesteps = draw(0, 1, 2, 3).float(), torch.tensor([999])
    prediction = draw(1, 1, 2, 3).bfloat16()
    clean = to_clean(prediction, noised, timesteps, SCHEDULE, "epsilon")
    assert clean.dtype == torch.float32
    a = torch.tensor(SCHEDULE.sqrt_recip_alphas_cumprod[999], dtype=torch.float32)
    b = torch.tensor(SCHEDULE.sqrt_recipm1_alphas_cumprod[999], dtype=torch.float32)
    assert torch.equal(clean, a * noised + (-b) * prediction.float())


@pytest.mark.parametrize("kind", get_args(PredictionType))
def test_min_snr_is_the_error_of_the_clean_data_times_the_limited_ratio(kind: PredictionType) -> None:
    """Whatever is predicted: min(SNR, 5) times the squared error of the x_0 that it means."""
    config = DiffusionConfig(prediction_type=kind, loss_weight="min_snr", snr_limit=5.0)
    schedule = NoiseSchedule.from_config(config)
    generator = torch.Generator().manual_seed(0)
    levels = torch.arange(0, schedule.num_timesteps, 37)
    clean, noise, wrong = (torch.randn(len(levels), 4, generator=generator).double() for _ in range(3))
    noised = add_noise(clean, noise, levels, schedule)
    target = training_target(clean, noise, levels, schedule, kind)
    error = ((target + wrong) - target).square() * torch.from_numpy(level_weights(schedule, config))[
        levels, None
    ]
    of_clean = (to_clean(target + wrong, noised, levels, schedule, kind) - clean).square()
    signal = torch.from_numpy(schedule.alphas_cumprod)[levels]
    expected = of_clean * (signal / (1 - signal)).clamp(max=5.0)[:, None]
    assert torch.allclose(error, expected, rtol=1e-9, atol=1e-12)


def test_without_weights_all_levels_count_alike() -> None:
    config = DiffusionConfig()
    assert (level_weights(NoiseSchedule.from_config(config), config) == 1).all()
