"""Sampling with a history, by DPM-Solver++ or UniPC: few steps go far."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig
from causalfusion.diffusion.samplers import PlainEntry
from causalfusion.diffusion.schedule import NoiseSchedule, clean_tables, respacing_timesteps
from causalfusion.diffusion.solvers import SolverName, correctors, levels_of, predictors
from causalfusion.errors import UserError


class MultistepSampler(PlainEntry):
    """A `Sampler` with memory: steps come in order, from a fresh instance for every AR step.

    The last step is of first order and lands on the predicted x_0. `scales`: σ at each step and 0 behind
    them; with `flow`, α is 1 - σ, else σ is that of x / α, noise over signal.
    """

    needs_noise = False

    def __init__(
        self,
        name: SolverName,
        timesteps: list[int] | list[float],
        shares: list[float],
        clean_factors: list[tuple[float, float]],
        scales: list[float],
        *,
        order: int = 2,
        flow: bool = False,
    ) -> None:
        self.timesteps, self.shares = timesteps, shares
        self._clean_factors, self.scales = clean_factors, scales
        self._name: SolverName = name
        self._flow = flow
        levels = levels_of(scales, flow)
        self._order, self._predictors = order, predictors(name, levels, order)
        self._correctors = correctors(levels, order) if name == "unipc" else None
        self._next_index = 0
        self._clean: list[Tensor] = []
        """The last predictions of x_0, newest first."""
        self._before: Tensor | None = None
        """The state with which the last step began."""

    def from_call(self, first: int) -> MultistepSampler:
        return MultistepSampler(
            self._name,
            self.timesteps[first:],
            self.shares[first:],
            self._clean_factors[first:],
            self.scales[first:],
            order=self._order,
            flow=self._flow,
        )

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        if index != self._next_index:
            raise ValueError(
                f"index is {index}; expected {self._next_index}: a multistep sampler takes every step once, "
                "in order; make a new one for each AR step"
            )
        self._next_index += 1
        of_noised, of_prediction = self._clean_factors[index]
        clean = of_noised * noised + of_prediction * prediction[..., : noised.shape[-1]].to(noised.dtype)
        clean_so_far = [clean, *self._clean]
        if self._correctors is not None and self._before is not None:
            noised = self._correctors[index - 1](self._before, clean_so_far)
        self._before, self._clean = noised, clean_so_far[: self._order]
        return self._predictors[index](noised, self._clean)


def multistep_ddpm(
    config: SampleConfig, schedule: NoiseSchedule, prediction_type: PredictionType, num_steps: int
) -> MultistepSampler:
    """Through a chain, by `sampler` dpm++ or unipc. Raises UserError for more steps than there are levels."""
    assert config.sampler in ("dpm++", "unipc"), "a solver with a history"
    levels = schedule.select(_timesteps(config, schedule, num_steps))
    of_noised, of_prediction = (table[::-1].tolist() for table in clean_tables(levels, prediction_type))
    timesteps: list[int] = levels.timestep_map[::-1].tolist()
    return MultistepSampler(
        config.sampler,
        timesteps,
        [timestep / schedule.num_timesteps for timestep in timesteps],
        list(zip(of_noised, of_prediction, strict=True)),
        [*levels.sqrt_recipm1_alphas_cumprod[::-1].tolist(), 0.0],
        order=config.solver_order,
    )


def _timesteps(config: SampleConfig, schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """Increasing. n + 1 timesteps, of which the cleanest is replaced by clean data, so that no prediction is
    spent where almost no noise is left; "linspace" and "leading" exactly as in diffusers, whose rounding of
    halves "even" does not share."""
    log_snr = -np.log(schedule.sqrt_recipm1_alphas_cumprod)
    total = int((log_snr >= config.least_log_snr).sum())
    most = total - 1 if config.step_spacing == "leading" else total
    if not 1 <= num_steps <= most:
        levels = "noise levels there are" + (" above sample.least_log_snr" if total < len(log_snr) else "")
        raise UserError(f"sample.diffusion_steps is {num_steps}; expected 1 to {most}, for the {levels}")
    if num_steps == total:
        return list(range(total))
    if config.step_spacing == "leading":
        stride = total // (num_steps + 1)
        return [stride * step for step in range(1, num_steps + 1)]
    if config.step_spacing == "even":
        return list(respacing_timesteps(total, num_steps + 1))[1:]
    return np.linspace(0, total - 1, num_steps + 1).round().astype(np.int64)[1:].tolist()
