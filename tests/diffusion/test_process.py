"""Noise, targets, conversions and weights of every path, against the formulas written out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.process import Process, make_process
from causalfusion.errors import UserError

KINDS: list[tuple[str, PredictionType]] = [
    ("ddpm", "epsilon"), ("ddpm", "v_prediction"), ("ddpm", "sample"),
    ("rectified_flow", "epsilon"), ("rectified_flow", "sample"), ("rectified_flow", "velocity"),
]  # fmt: skip


def process_of(path: str, kind: PredictionType, **settings: object) -> Process:
    return make_process(replace(DiffusionConfig(path=path, prediction_type=kind), **settings))  # type: ignore[arg-type]


def level(process: Process, share: float) -> Tensor:
    """One level at that share of the path, as `draw_levels` gives them."""
    if isinstance(process, DDPM):
        return torch.tensor([round(share * 999)])
    return torch.tensor([share])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60)
@given(st.floats(0.002, 0.998), st.integers(0, 2**20), st.sampled_from(KINDS))
def test_the_target_means_the_clean_data(share: float, seed: int, kind: tuple[str, PredictionType]) -> None:
    process = process_of(*kind)
    clean, noise, levels = normal(seed, 1, 3, 5), normal(seed + 1, 1, 3, 5), level(process, share)
    tokens = process.noise(clean, noise, levels)
    # 1 / α is 500 at most here: rounding grows by no more than that.
    torch.testing.assert_close(
        process.to_clean(tokens.target, tokens.noised, levels), clean, rtol=0, atol=1e-11
    )


@settings(max_examples=30)
@given(st.floats(0.002, 0.998), st.floats(0, 8), st.sampled_from(KINDS))
def test_guidance_commutes_with_conversion(
    share: float, scale: float, kind: tuple[str, PredictionType]
) -> None:
    process = process_of(*kind)
    noised, conditional, unconditional = normal(3, 3, 1, 4, 3)
    levels = level(process, share)
    guided = process.to_clean(unconditional + scale * (conditional - unconditional), noised, levels)
    first, second = (process.to_clean(p, noised, levels) for p in (unconditional, conditional))
    torch.testing.assert_close(guided, first + scale * (second - first), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("levels", [torch.tensor([0, 999]), torch.tensor([[0, 5, 999], [1, 2, 3]])])
def test_ddpm_follows_the_formulas_element_by_element(levels: Tensor) -> None:
    clean, noise = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    tokens = process_of("ddpm", "v_prediction").noise(clean, noise, levels)
    for b in range(2):
        for i in range(3):
            t = int(levels[b] if levels.ndim == 1 else levels[b, i])
            alpha_bar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * s / 999) for s in range(t + 1))
            signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
            torch.testing.assert_close(tokens.noised[b, i], signal * clean[b, i] + sigma * noise[b, i])
            torch.testing.assert_close(tokens.target[b, i], signal * noise[b, i] - sigma * clean[b, i])


def test_a_flow_is_straight_and_its_velocity_is_the_derivative() -> None:
    process = process_of("rectified_flow", "velocity")
    clean, noise, levels = normal(0, 2, 3, 4), normal(1, 2, 3, 4), torch.tensor([[0.0], [0.25]])
    tokens = process.noise(clean, noise, levels)
    assert torch.equal(tokens.noised[0], clean[0])
    torch.testing.assert_close(tokens.noised[1], 0.75 * clean[1] + 0.25 * noise[1])
    later = process.add_noise(clean, noise, levels.double() + 1e-6)
    torch.testing.assert_close((later - tokens.noised) / 1e-6, tokens.target, rtol=1e-6, atol=1e-8)


def test_latents_take_one_level_per_image() -> None:
    process = process_of("ddpm", "epsilon")
    clean, noise = normal(0, 2, 4, 3, 3), normal(1, 2, 4, 3, 3)
    noised = process.add_noise(clean, noise, torch.tensor([3, 700]))
    assert torch.equal(noised[1:], process.add_noise(clean[1:], noise[1:], torch.tensor([700])))


def test_factors_are_cast_once_and_half_predictions_join_in_float32() -> None:
    process = DDPM(DiffusionConfig())
    noised, prediction = normal(0, 1, 2, 3).float(), normal(1, 1, 2, 3).bfloat16()
    clean = process.to_clean(prediction, noised, torch.tensor([999]))
    assert clean.dtype == torch.float32
    a = torch.tensor(process.schedule.sqrt_recip_alphas_cumprod[999], dtype=torch.float32)
    b = torch.tensor(process.schedule.sqrt_recipm1_alphas_cumprod[999], dtype=torch.float32)
    assert torch.equal(clean, a * noised + (-b) * prediction.float())


# --- what an error counts -----------------------------------------------------------------------------


def weighted_error(process: Process, shares: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted error, error of the x_0 that is meant, levels) of a wrong prediction at these shares."""
    levels = torch.cat([level(process, share) for share in shares])
    clean, noise, wrong = (normal(seed, len(levels), 4) for seed in (0, 1, 2))
    tokens = process.noise(clean, noise, levels)
    prediction = tokens.target + wrong
    error = process.errors(prediction, tokens).double() * process.weight(levels)[:, None].double()
    return error, process.to_clean(prediction, tokens.noised, levels) - clean, levels


SHARES = [0.06, 0.2, 0.5, 0.77, 0.94]


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_is_the_error_of_the_clean_data_times_the_limited_ratio(
    kind: tuple[str, PredictionType],
) -> None:
    process = process_of(*kind, loss_weight="min_snr", snr_limit=5.0)
    error, of_clean, levels = weighted_error(process, SHARES)
    signal = process.signal(levels, torch.ones(len(levels), dtype=torch.float64))
    noise = process.noise_scale(levels, torch.ones(len(levels), dtype=torch.float64))
    expected = of_clean.square() * (signal / noise).square().clamp(max=5.0)[:, None]
    torch.testing.assert_close(error, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measured", ["epsilon", "sample", "v_prediction", "velocity"])
def test_an_error_can_be_measured_in_another_quantity(
    kind: tuple[str, PredictionType], measured: PredictionType
) -> None:
    """The error of the other quantity that (x_l, wrong prediction) mean."""
    if (kind[0], measured) not in [(path, each) for path, each in KINDS]:
        with pytest.raises(UserError, match="error_in"):
            process_of(*kind, error_in=measured)
        return
    process, other = process_of(*kind, error_in=measured), process_of(kind[0], measured)
    error, of_clean, levels = weighted_error(process, SHARES)
    clean, noise = normal(0, len(levels), 4), normal(1, len(levels), 4)
    noised = process.add_noise(clean, noise, levels)
    like = torch.ones(len(levels), 1, dtype=torch.float64)
    meant = clean + of_clean
    noise_meant = (noised - process.signal(levels, like) * meant) / process.noise_scale(levels, like)
    expected = other.target(meant, noise_meant, levels) - other.target(clean, noise, levels)
    torch.testing.assert_close(error, expected.square(), rtol=2e-5, atol=1e-9)


def test_a_division_by_little_noise_is_limited() -> None:
    """JiT divides by max(t, 0.05): below, the weight of the error of x_0 stays at 400."""
    process = process_of("rectified_flow", "sample", error_in="velocity")
    weights = process.weight(torch.tensor([0.0, 0.01, 0.05, 0.1, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([400.0, 400.0, 400.0, 100.0, 0.95**-2]))


def test_weights_of_the_literature_for_flows() -> None:
    levels = torch.tensor([0.1, 0.5, 0.9])
    sigma = process_of("rectified_flow", "velocity", loss_weight="sigma_sqrt").weight(levels)
    torch.testing.assert_close(sigma, torch.tensor([100.0, 4.0, 1 / 0.81]))
    cosmap = process_of("rectified_flow", "velocity", loss_weight="cosmap").weight(levels)
    expected = [2 / (math.pi * (1 - 2 * x + 2 * x * x)) for x in (0.1, 0.5, 0.9)]
    torch.testing.assert_close(cosmap, torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_all_levels_count_alike(kind: tuple[str, PredictionType]) -> None:
    process = process_of(*kind)
    levels = process.draw_levels((64, 1), torch.Generator().manual_seed(0))
    assert torch.equal(process.weight(levels), torch.ones(64, 1))


# --- levels -------------------------------------------------------------------------------------------


def drawn(**settings: object) -> np.ndarray:
    process = process_of("rectified_flow", "velocity", **settings)
    return process.draw_levels((20_000,), torch.Generator().manual_seed(1)).double().numpy()


def test_uniform_levels_are_uniform_and_ddpms_are_those_of_randint() -> None:
    levels = np.sort(drawn())
    assert np.abs(levels - np.linspace(0, 1, len(levels))).max() < 1.6 / len(levels) ** 0.5  # Kolmogorov
    process = DDPM(DiffusionConfig())
    ours = process.draw_levels((3, 5), torch.Generator().manual_seed(2))
    assert torch.equal(ours, torch.randint(1000, (3, 5), generator=torch.Generator().manual_seed(2)))


def test_logit_normal_levels_have_a_normal_logit() -> None:
    levels = drawn(level_distribution="logit_normal", level_mean=0.8, level_std=0.6)
    logit = np.log(levels / (1 - levels))
    assert abs(logit.mean() - 0.8) < 4 * 0.6 / len(levels) ** 0.5
    assert logit.std() == pytest.approx(0.6, rel=0.03)


def test_shift_and_range_move_the_same_draws() -> None:
    plain = drawn()
    np.testing.assert_allclose(drawn(level_shift=3.0), 3 * plain / (1 + 2 * plain), rtol=1e-5)
    np.testing.assert_allclose(drawn(level_range=(0.2, 0.7)), 0.2 + 0.5 * plain, rtol=1e-5)
    process = process_of("ddpm", "epsilon", level_range=(0.5, 1.0), level_shift=2.0)
    levels = process.draw_levels((5000,), torch.Generator().manual_seed(0))
    assert levels.dtype == torch.int64 and 500 <= int(levels.min()) < 510 and int(levels.max()) == 999


@pytest.mark.parametrize("kind", KINDS)
def test_limited_levels_keep_their_order_below_the_limit(kind: tuple[str, PredictionType]) -> None:
    process = process_of(*kind)
    levels = process.draw_levels((1000,), torch.Generator().manual_seed(0)).sort().values
    limited = process.limited(levels, 500)
    assert float(process.shares(limited).max()) <= 0.5 and (limited.diff() >= 0).all()
    assert torch.equal(process.limited(levels, 5000), levels)


def test_what_the_model_is_told() -> None:
    levels = torch.tensor([0.0, 0.25, 1.0])
    assert process_of("rectified_flow", "velocity").timesteps(levels).tolist() == [0, 250, 1000]
    sit = process_of("rectified_flow", "velocity", timestep_scale=1.0, timestep_from="noise")
    assert sit.timesteps(levels).tolist() == [1, 0.75, 0]
    assert process_of("ddpm", "epsilon").timesteps(torch.tensor([7])).tolist() == [7]


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "ddpm", "prediction_type": "velocity"},
        {"path": "rectified_flow", "prediction_type": "v_prediction"},
        {"path": "rectified_flow", "variance": "learned_range"},
        {"prediction_type": "sample", "variance": "learned_range"},
        {"loss_weight": "cosmap"},
        {"error_in": "sample", "loss_weight": "min_snr"},
        {"level_range": (0.5, 0.5)},
        {"level_std": 0.0},
        {"least_level": 0.0},
        {"cosine_offset": 1.0},
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"diffusion\."):
        DiffusionConfig(**settings)  # type: ignore[arg-type]
