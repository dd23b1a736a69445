"""The multistep solvers against diffusers' schedulers, which are their oracle."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType, SampleConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.flow import RectifiedFlow
from causalfusion.diffusion.multistep import MultistepSampler
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.solvers import SolverName, correctors, levels_of, predictors
from causalfusion.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
SOLVERS: tuple[SolverName, ...] = ("dpm++", "unipc")
UNEVEN = [40.0, 37.0, 11.0, 9.5, 2.0, 1.9, 0.7, 0.2, 0.01, 0.0]
"""Noise over signal in strides from small to large."""


def diffusers_scheduler(name: SolverName, scales: list[float], order: int, flow: bool) -> Any:
    """At its first step, taking x_0."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    make = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    scheduler = make(
        solver_order=order, prediction_type="sample", final_sigmas_type="zero", use_flow_sigmas=flow
    )
    scheduler.set_timesteps(len(scales) - 1)
    scheduler.set_begin_index(0)
    scheduler.sigmas = torch.tensor(scales, dtype=torch.float64)
    return scheduler


def clean_at(state: Tensor, index: int) -> Tensor:
    """An x_0 that bends, as a function of the state."""
    return 0.7 * torch.tanh(state) + 0.1 * torch.sin(3 * state + index)


def largest_difference(name: SolverName, scales: list[float], order: int, flow: bool) -> float:
    """Between the states of both after every step from the same start, in float32."""
    count = len(scales) - 1
    ours = MultistepSampler(
        name, [0] * count, [0.0] * count, [(0.0, 1.0)] * count, scales, order=order, flow=flow
    )
    scheduler = diffusers_scheduler(name, scales, order, flow)
    state = theirs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for index in range(count):
        state = ours.step(index, state, clean_at(state, index), None)
        timestep = scheduler.timesteps[index]
        theirs = scheduler.step(clean_at(theirs, index), timestep, theirs, return_dict=False)[0]
        assert state.dtype == torch.float32
        worst = max(worst, float((state - theirs).abs().max()))
    return worst


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_is_that_of_diffusers(name: SolverName, order: int) -> None:
    chain = DDPM(DiffusionConfig())
    flow = RectifiedFlow(DiffusionConfig(path="rectified_flow", prediction_type="velocity"))
    for num_steps in (1, 2, 3, 4, 14, 15, 40):
        for spacing in ("even", "linspace", "leading"):
            config = SampleConfig(sampler=name, step_spacing=spacing, solver_order=order)
            sampler = chain.sampler(config, num_steps)
            assert isinstance(sampler, MultistepSampler)
            assert largest_difference(name, sampler.scales, order, False) <= 1e-5, (num_steps, spacing)
        sampler = flow.sampler(SampleConfig(sampler=name), num_steps)
        assert isinstance(sampler, MultistepSampler)
        assert largest_difference(name, sampler.scales, order, True) <= 1e-5, num_steps
    assert largest_difference(name, UNEVEN, order, False) <= 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SOLVERS)
def test_predictions_mean_what_they_mean_to_diffusers(name: SolverName, kind: PredictionType) -> None:
    process = DDPM(DiffusionConfig(prediction_type=kind))
    ours = process.sampler(SampleConfig(sampler=name, step_spacing="linspace"), 12)
    assert isinstance(ours, MultistepSampler)
    scheduler = diffusers_scheduler(name, ours.scales, 2, False)
    scheduler.register_to_config(prediction_type=kind)
    state = theirs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    for index in range(12):
        state = ours.step(index, state, 0.1 * clean_at(state, index), None)
        timestep = scheduler.timesteps[index]
        theirs = scheduler.step(0.1 * clean_at(theirs, index), timestep, theirs, return_dict=False)[0]
        assert (state - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1), index


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_shrinks_with_the_number_of_steps(name: SolverName) -> None:
    """Data N(0, s²): x_0 = s² α x / v with v = s² α² + σ², and the flow keeps x / sqrt(v). The step of first
    order at either end has an error of second order, with any solver."""

    def error(order: int, count: int) -> float:
        scales = torch.logspace(1.5, -1.5, count + 1, dtype=torch.float64).tolist()
        levels = levels_of(scales, flow=False)
        steps = predictors(name, levels, order)
        again = correctors(levels, order) if name == "unipc" else None
        variance = [0.25 * level.signal**2 + level.noise**2 for level in levels]
        state, clean, before = torch.tensor(1.0, dtype=torch.float64), [], None
        for index in range(count):
            level = levels[index]
            clean = [0.25 * level.signal * state / variance[index], *clean]
            if again is not None and before is not None:
                state = again[index - 1](before, clean)
            before, state = state, steps[index](state, clean)
        return abs(float(state) / (variance[-1] / variance[0]) ** 0.5 - 1)

    for order in (1, 2, 3):
        errors = [error(order, count) for count in (40, 80, 160)]
        for coarse, fine in pairwise(errors):
            assert fine < coarse / 1.8 ** min(order, 2), (order, errors)


@pytest.mark.parametrize("path", ["ddpm", "rectified_flow"])
def test_the_order_of_a_sampler_is_that_of_its_settings(path: Literal["ddpm", "rectified_flow"]) -> None:
    process = make_process(DiffusionConfig(path=path, prediction_type="sample"))
    start = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))

    def end(config: SampleConfig) -> Tensor:
        sampler, state = process.sampler(config, 6), start
        for index in range(6):
            state = sampler.step(index, state, clean_at(state, 0), None)
        return state

    ends = [end(SampleConfig(sampler="dpm++", solver_order=order)) for order in (1, 2, 3)]
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in pairwise(ends))
    if path == "rectified_flow":
        torch.testing.assert_close(ends[0], end(SampleConfig(sampler="euler")), rtol=0, atol=2e-3)
    with pytest.raises(UserError, match=r"solver_order is 4"):
        SampleConfig(solver_order=4)


def test_weights_of_a_step_keep_a_constant() -> None:
    """If every prediction is the same x_0, a step is exact: x' = σ'/σ x + (α' - α σ'/σ) x_0."""
    for flow in (False, True):
        scales = [0.99, 0.8, 0.5, 0.45, 0.1, 0.02, 0.0]
        levels = levels_of(scales, flow)
        for name in SOLVERS:
            for order in (1, 2, 3):
                steps = [*predictors(name, levels, order), *correctors(levels, order)]
                ends = [*range(len(levels) - 1), *range(len(levels) - 2)]
                for step, index in zip(steps, ends, strict=True):
                    start, end = levels[index], levels[index + 1]
                    ratio = end.noise / start.noise
                    assert step.of_state == pytest.approx(ratio, abs=1e-12)
                    exact = end.signal - start.signal * ratio
                    assert sum(step.of_clean) == pytest.approx(exact, abs=1e-12)
