"""Samplers of rectified flow, on Gaussian data, where everything is known in closed form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType, SampleConfig, SamplerName
from causalfusion.diffusion.flow import RectifiedFlow
from causalfusion.diffusion.samplers import Sampler, begun_at
from causalfusion.errors import UserError

MEAN, STD = 0.7, 0.5
"""Every element of the data is N(MEAN, STD²)."""
ODE: tuple[SamplerName, ...] = ("euler", "heun", "dpm++", "unipc")
KINDS: tuple[PredictionType, ...] = ("velocity", "sample", "epsilon")


def flow(kind: PredictionType = "velocity") -> RectifiedFlow:
    return RectifiedFlow(DiffusionConfig(path="rectified_flow", prediction_type=kind, timestep_scale=1.0))


def exact_prediction(noised: Tensor, level: float, kind: PredictionType) -> Tensor:
    """The conditional mean of what is predicted, given x_l: all are jointly Gaussian."""
    signal, variance = 1 - level, (1 - level) ** 2 * STD**2 + level**2
    centred = (noised - signal * MEAN) / variance
    clean, noise = MEAN + signal * STD**2 * centred, level * centred
    return {"velocity": noise - clean, "sample": clean, "epsilon": noise}[kind]


def run(sampler: Sampler, start: Tensor, kind: PredictionType = "velocity", seed: int = 0) -> Tensor:
    generator, noised = torch.Generator().manual_seed(seed), start
    for index, level in enumerate(sampler.shares):
        noise = torch.randn(noised.shape, generator=generator, dtype=noised.dtype)
        noised = sampler.enter(index, noised, noise)
        prediction = exact_prediction(noised, level, kind)
        noised = sampler.step(index, noised, prediction, noise if sampler.needs_noise else None)
    return noised


def error_of(name: SamplerName, num_steps: int, kind: PredictionType = "velocity") -> float:
    """Distance to where the flow takes x_1 = ε: to MEAN + STD ε, as it keeps (x - mean) / std."""
    start = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(2, 8, 4)
    end = run(flow(kind).sampler(SampleConfig(sampler=name), num_steps), start, kind)
    return float((end - (MEAN + STD * start)).abs().max())


def test_euler_converges_at_first_order_and_heun_at_second() -> None:
    euler = [error_of("euler", n) for n in (20, 40, 80, 160)]
    heun = [error_of("heun", n) for n in (20, 40, 80, 160)]
    for coarse, fine in pairwise(euler):
        assert 0.45 < fine / coarse < 0.55
    for coarse, fine in pairwise(heun):
        assert 0.2 < fine / coarse < 0.3
    assert heun[0] < euler[0] / 10


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_multistep_solvers_beat_euler(name: SamplerName) -> None:
    for num_steps in (6, 11, 20, 51):
        assert error_of(name, num_steps) < 0.6 * error_of("euler", num_steps)
    assert error_of(name, 200) < 2e-3


def test_the_sde_has_the_datas_mean_and_variance() -> None:
    start = torch.randn(1, 100, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end = run(flow().sampler(SampleConfig(sampler="sde"), 250), start)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(end.std()) == pytest.approx(STD, abs=0.015)


@pytest.mark.parametrize("name", ["euler", "dpm++", "unipc", "sde"])
def test_the_prediction_type_does_not_change_the_samples(name: SamplerName) -> None:
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ends = [run(flow(k).sampler(SampleConfig(sampler=name), 12), start, k) for k in KINDS]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=5e-3)  # ε begins at level 0.999


@pytest.mark.parametrize("num_steps", [1, 2, 3, 14, 15])
@pytest.mark.parametrize("name", RectifiedFlow.samplers)
def test_any_number_of_steps_is_finite_and_ends_on_the_last_predicted_clean_data(
    name: SamplerName, num_steps: int
) -> None:
    sampler = flow("sample").sampler(SampleConfig(sampler=name), num_steps)
    calls = 2 * num_steps - 1 if name in ("heun", "sde_heun") else num_steps
    assert len(sampler.timesteps) == len(sampler.shares) == calls and sampler.shares[0] == 1
    assert list(sampler.shares) == sorted(sampler.shares, reverse=True)
    assert sampler.needs_noise == (name in ("sde", "sde_heun") and num_steps > 1)
    noised = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))
    prediction = noised
    for index in range(calls):
        prediction = torch.sin(noised + index)
        noised = sampler.step(index, noised, prediction, torch.ones_like(noised))
        assert noised.isfinite().all() and noised.dtype == torch.float32
    if name not in ("sde", "sde_heun") or num_steps == 1:  # whose last step is one of the drift
        torch.testing.assert_close(noised, prediction, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.75, 0.5, 0.04])
@pytest.mark.parametrize("name", RectifiedFlow.samplers)
def test_a_sampler_begun_on_the_way_is_the_rest_of_the_whole(name: SamplerName, share: float) -> None:
    """Exactly, where a step remembers nothing of those before; else it lands where the flow does."""
    whole = flow().sampler(SampleConfig(sampler=name), 40)
    rest = begun_at(whole, share)
    assert rest is not None and share - 0.03 < rest.shares[0] <= share + 1e-6
    first = len(whole.shares) - len(rest.shares)
    assert first % whole.calls_per_step == 0 and list(rest.shares) == list(whole.shares[first:])
    level = rest.shares[0]
    start = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(2, 8, 4)
    state = (1 - level) * MEAN + ((1 - level) ** 2 * STD**2 + level**2) ** 0.5 * start
    if name in ("dpm++", "unipc"):
        assert float((run(rest, state) - (MEAN + STD * start)).abs().max()) < 1e-2
        return
    noises = torch.randn(len(rest.shares), *state.shape, dtype=torch.float64)
    ends = []
    for sampler, calls in ((rest, range(len(rest.shares))), (whole, range(first, len(whole.shares)))):
        noised = state
        for index, noise in zip(calls, noises, strict=True):
            noised = sampler.enter(index, noised, noise)
            prediction = exact_prediction(noised, sampler.shares[index], "velocity")
            noised = sampler.step(index, noised, prediction, noise)
        ends.append(noised)
    assert torch.equal(*ends)
    everything = begun_at(whole, 1.0)
    assert begun_at(whole, 1e-9) is None and everything is not None and everything.shares == whole.shares


def test_one_step_of_euler_is_the_straight_line() -> None:
    start = torch.tensor([[[3.0]]])
    (sampler,) = [flow().sampler(SampleConfig(sampler="euler"), 1)]
    assert float(sampler.step(0, start, torch.tensor([[[2.0]]]), None)) == 1.0


def test_the_shift_moves_the_levels_of_the_steps() -> None:
    shares = flow().sampler(SampleConfig(sampler="euler", level_shift=3.0), 4).shares
    assert shares == pytest.approx([1, 3 * 0.75 / 2.5, 3 * 0.5 / 2, 3 * 0.25 / 1.5])


def test_temperature_scales_the_noise_of_the_sde_only() -> None:
    start, prediction = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    ends = [
        flow().sampler(SampleConfig(sampler="sde", temperature=t), 10).step(0, start, prediction, prediction)
        for t in (0.0, 0.5, 1.0)
    ]
    assert float(ends[2] - ends[0]) == pytest.approx(2 * float(ends[1] - ends[0]))
    assert float(ends[2] - ends[0]) == pytest.approx((2 * 1.0 * 0.96 / 9) ** 0.5)


def test_samplers_of_the_other_path_are_refused() -> None:
    with pytest.raises(UserError, match="expected auto, or one of euler, heun, sde, sde_heun, dpm"):
        flow().sampler(SampleConfig(sampler="ddpm"), 10)
    with pytest.raises(UserError, match="level_shift"):
        flow().sampler(SampleConfig(sampler="euler", respacing="10"), 10)
