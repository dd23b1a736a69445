"""DPM-Solver++ (2M, 2211.01095) and UniPC (2302.04867), through diffusers' schedulers.

Both integrate the probability flow with the history of earlier predictions, so few steps go far. diffusers
keeps its noise levels in float32; here they are set from our float64 ones, and each prediction becomes x_0
by our own conversion before it is handed over.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig
from causalfusion.diffusion.samplers import PlainEntry
from causalfusion.diffusion.schedule import NoiseSchedule, clean_tables, respacing_timesteps
from causalfusion.errors import UserError

SolverName = Literal["dpm++", "unipc"]


class MultistepSampler(PlainEntry):
    """A `Sampler` with memory: steps come in order, from a fresh instance for every AR step.

    The last step is of first order and lands on the predicted x_0. dpm++ computes in float32 whatever the
    dtype of the state. `scales`: σ at each step and 0 behind them; with `flow`, α is 1 - σ, else σ is that
    of x / α, noise over signal.
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
        flow: bool = False,
    ) -> None:
        self.timesteps, self.shares = timesteps, shares
        self._clean_factors, self.scales = clean_factors, scales
        self._scheduler = _make_scheduler(name, len(timesteps), flow)
        self._next_index = 0

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        if index != self._next_index:
            raise ValueError(
                f"index is {index}; expected {self._next_index}: a multistep sampler takes every step once, "
                "in order; make a new one for each AR step"
            )
        if index == 0:
            # UniPC moves the levels to the state's device, and mps has no float64.
            dtype = torch.float32 if noised.device.type == "mps" else torch.float64
            self._scheduler.sigmas = torch.tensor(self.scales, dtype=dtype)
        self._next_index += 1
        of_noised, of_prediction = self._clean_factors[index]
        clean = of_noised * noised + of_prediction * prediction[..., : noised.shape[-1]].to(noised.dtype)
        return self._scheduler.step(clean, self._scheduler.timesteps[index], noised, return_dict=False)[0]


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


def _make_scheduler(name: SolverName, num_steps: int, flow: bool) -> Any:
    """diffusers' scheduler at its first step, taking x_0 and ending at clean data; sigmas yet to be set."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    make = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    scheduler = make(solver_order=2, prediction_type="sample", final_sigmas_type="zero", use_flow_sigmas=flow)
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    return scheduler
