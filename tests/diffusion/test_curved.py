"""Curved paths, the SDEs of every path, and other schedules, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, SampleConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.flow import Flow
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.samplers import Sampler
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.errors import UserError
from causalfusion.generate.guidance import Guidance, guidance_scales

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
PATHS = ["rectified_flow", "gvp", "vp"]
KINDS = ["epsilon", "sample", "velocity", "score"]
MEAN, STD = 0.7, 0.4


def flow(path: str, kind: str = "velocity", **settings: object) -> Flow:
    config = DiffusionConfig(path=path, prediction_type=kind, **settings)  # type: ignore[arg-type]
    process = make_process(config)
    assert isinstance(process, Flow)
    return process


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(process: Flow, sampler: Sampler, start: Tensor, seed: int = 1) -> Tensor:
    """With the conditional mean of what is predicted, of data that are N(MEAN, STD²)."""
    generator, x = torch.Generator().manual_seed(seed), start
    for index, share in enumerate(sampler.shares):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        given = noise if sampler.needs_noise else None
        x = sampler.enter(index, x, given)
        signal, scale, *_ = process.at(share)
        centred = (x - signal * MEAN) / (signal**2 * STD**2 + scale**2)
        clean, epsilon = MEAN + signal * STD**2 * centred, scale * centred
        level = torch.tensor([share], dtype=torch.float64)
        x = sampler.step(index, x, process.target(clean, epsilon, level), given)
    return x


@pytest.mark.parametrize("path", PATHS)
def test_slopes_are_the_derivatives(path: str) -> None:
    process, step = flow(path), 1e-6
    for level in (0.05, 0.3, 0.5, 0.99):
        _, _, *slopes = process.at(level)
        before, after = process.at(level - step), process.at(level + step)
        numeric = [(after[k] - before[k]) / (2 * step) for k in range(2)]
        assert slopes == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("path", ["gvp", "vp"])
def test_curved_paths_keep_the_variance_and_end_in_noise(path: str) -> None:
    for level in (0.0, 0.2, 0.7, 1.0):
        signal, scale, *_ = flow(path).at(level) if level else (1.0, 0.0)
        assert signal**2 + scale**2 == pytest.approx(1)
    assert flow(path).at(1.0)[0] < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_gives_the_clean_data(path: str, kind: str) -> None:
    process, clean, noise = flow(path, kind), some(5, 3, 2), some(5, 3, 2, seed=1)
    levels = torch.tensor([0.02, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    tokens = process.noise(clean, noise, levels)
    torch.testing.assert_close(process.to_clean(tokens.target, tokens.noised, levels), clean)


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_errors_agree(path: str) -> None:
    """An error of the noise, weighted as the velocity's, is the velocity's; of the score, likewise."""
    levels, clean, noise = torch.tensor([0.3, 0.6]), some(2, 4, seed=2).float(), some(2, 4, seed=3).float()
    wrong = noise + 0.1
    ends = {}
    for kind in ("epsilon", "velocity", "score"):
        process = flow(path, kind, error_in="velocity")
        tokens = process.noise(clean, noise, levels)
        of_x, of_prediction = process.clean_factors("epsilon", levels, clean)
        mistaken = of_x * tokens.noised + of_prediction * wrong
        prediction = process.target(mistaken, wrong, levels)
        ends[kind] = process.errors(prediction, tokens).mean(1) * process.weight(levels)
    torch.testing.assert_close(ends["epsilon"], ends["velocity"], rtol=1e-3, atol=0)
    torch.testing.assert_close(ends["score"], ends["velocity"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm++", "unipc"])
@pytest.mark.parametrize("path", PATHS)
def test_the_flow_takes_noise_to_the_data(path: str, name: str) -> None:
    """The flow keeps (x - mean) / std of each level."""
    process, start = flow(path), torch.linspace(-2, 2, 32, dtype=torch.float64).reshape(2, 16)
    end = run(process, process.sampler(SampleConfig(sampler=name), 400), start)  # type: ignore[arg-type]
    signal, scale, *_ = process.at(1.0)
    centred = (start - signal * MEAN) / math.sqrt(signal**2 * STD**2 + scale**2)
    torch.testing.assert_close(end, MEAN + STD * centred, rtol=0, atol=0.02)


@pytest.mark.parametrize("rule", ["mean", "euler", "tweedie"])
@pytest.mark.parametrize(
    "noise", ["sigma", "linear", "decreasing", "increasing_decreasing", "constant", "sbdm"]
)
def test_every_sde_has_the_datas_mean_and_spread(noise: str, rule: str) -> None:
    config = SampleConfig(sampler="sde", sde_noise=noise, last_step_rule=rule, last_step=0.02, sde_norm=0.5)  # type: ignore[arg-type]
    for path in PATHS:
        process = flow(path)
        end = run(process, process.sampler(config, 300), some(100, 300, seed=4))
        assert float(end.mean()) == pytest.approx(MEAN, abs=0.02), path
        assert float(end.std()) == pytest.approx(STD, abs=0.03), path


def test_heun_for_sdes_needs_fewer_steps() -> None:
    process, start, spread = flow("rectified_flow"), some(100, 500, seed=5), {}
    for name, steps in (("sde", 12), ("sde_heun", 12)):
        sampler = process.sampler(SampleConfig(sampler=name, last_step=0.02), steps)  # type: ignore[arg-type]
        spread[name] = abs(float(run(process, sampler, start).std()) - STD)
    assert spread["sde_heun"] < spread["sde"] / 2


def test_without_a_last_step_the_sde_goes_all_the_way() -> None:
    sampler = flow("gvp").sampler(SampleConfig(sampler="sde", last_step_rule="none"), 10)
    assert sampler.shares == pytest.approx([1 - k / 10 for k in range(10)])
    with pytest.raises(UserError, match="expected mean, euler or tweedie"):
        flow("gvp").sampler(SampleConfig(sampler="sde_heun", last_step_rule="none"), 10)


def test_a_shifted_time_is_told_and_nothing_else() -> None:
    plain = flow("rectified_flow", timestep_scale=1.0, timestep_from="noise")
    shifted = flow("rectified_flow", timestep_scale=1.0, timestep_from="noise", timestep_shift=3.0)
    levels = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(shifted.timesteps(levels), torch.tensor([1.0, 3 * 0.75 / 2.5, 0.0]))
    assert torch.equal(plain.add_noise(levels, levels, levels), shifted.add_noise(levels, levels, levels))


def test_weights_and_paths_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="none, min_snr, likelihood, for path gvp"):
        DiffusionConfig(path="gvp", prediction_type="velocity", loss_weight="cosmap")
    with pytest.raises(UserError, match="none, min_snr, for path ddpm"):
        DiffusionConfig(loss_weight="likelihood")
    with pytest.raises(UserError, match="prediction_type"):
        DiffusionConfig(prediction_type="score")


# --- chains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cauchy", "laplace", "sigmoid"])
def test_other_schedules_follow_their_formulas(name: str) -> None:
    schedule = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=name))  # type: ignore[arg-type]
    t = 300 / 1000
    if name == "sigmoid":
        logistic = 1 / (1 + math.exp(6 - 12 * 300 / 999))
        assert schedule.betas[300] == pytest.approx(1e-4 + (0.02 - 1e-4) * logistic)
        return
    signal = {
        "cauchy": lambda u: 1 - 1 / (math.exp(3 + math.tan(math.pi * (0.5 - u) * 0.9)) + 1.1),
        "laplace": lambda u: (
            1 - 1 / (math.exp(-math.log(1 - 2 * abs(u - 0.5) * 0.98) * (1 if u < 0.5 else -1)) + 1.02)
        ),
    }[name]
    assert schedule.alphas_cumprod[299] == pytest.approx(signal(t) / signal(0.0))
    assert np.all(np.diff(schedule.alphas_cumprod) < 0)


def test_float32_schedules_differ_where_hardly_any_signal_is_left() -> None:
    exact = NoiseSchedule.from_config(DiffusionConfig(beta_schedule="cosine"))
    single = NoiseSchedule.from_config(DiffusionConfig(beta_schedule="cosine", schedule_precision="float32"))
    ratio = single.alphas_cumprod / exact.alphas_cumprod - 1
    assert np.abs(ratio[:900]).max() < 2e-5 and 1e-6 < abs(ratio[-1]) < 1e-3


def test_the_solvers_timesteps() -> None:
    process = DDPM(DiffusionConfig(beta_schedule="cosine"))

    def timesteps(steps: int, **settings: object) -> list[int] | list[float]:
        config = SampleConfig(sampler="dpm++", **settings)  # type: ignore[arg-type]
        return process.sampler(config, steps).timesteps

    assert timesteps(4) == [999, 749, 500, 250]
    # 499.5: rounded to the even number as diffusers does, or as this project's models were sampled before.
    assert (timesteps(20, step_spacing="linspace")[10], timesteps(20)[10]) == (500, 499)
    assert timesteps(4, step_spacing="leading") == [800, 600, 400, 200]
    highest = timesteps(4, least_log_snr=-2.0)[0]
    log_snr = -np.log(process.schedule.sqrt_recipm1_alphas_cumprod)
    assert log_snr[int(highest)] >= -2 > log_snr[int(highest) + 1]
    with pytest.raises(
        UserError, match=r"expected 1 to \d+, for the noise levels there are above sample.least_log_snr"
    ):
        timesteps(999, least_log_snr=-2.0)


# --- guidance -----------------------------------------------------------------------------------------


def test_guidance_that_grows_along_the_path() -> None:
    guidance = Guidance(3.0, power=2.0)
    assert [guidance.scale_at(share) for share in (0.0, 1.0)] == [1.0, 3.0]
    assert guidance.scale_at(math.sqrt(0.5)) == pytest.approx(2.0)
    one = torch.ones(1)
    assert float(guidance.combine(2 * one, one, math.sqrt(0.5))) == pytest.approx(3.0)


def test_guidance_that_counts_masked_tokens_never_reaches_its_scale() -> None:
    config = SampleConfig(guidance_scale=3.0, guidance_schedule="masked_linear")
    assert guidance_scales(config, [2, 2, 6]) == pytest.approx([1.4, 1.8, 1 + 2 * 0.9])
