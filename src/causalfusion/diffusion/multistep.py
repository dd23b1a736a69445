"""DPM-Solver++ (2M, 2211.01095) and UniPC (2302.04867), through diffusers' schedulers.

Both integrate the probability flow with the history of earlier predictions, so few steps go far. diffusers
keeps its noise levels in float32; here they are set from our float64 schedule, and each prediction becomes
x_0 by our own conversion before it is handed over.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from causalfusion.config import PredictionType
from causalfusion.diffusion.prediction import clean_coefficients
from causalfusion.diffusion.schedule import NoiseSchedule


class MultistepSampler:
    """A `Sampler` with memory: steps come in order, from a fresh instance for every AR step.

    The timesteps are diffusers' "linspace": n + 1 of them evenly spread, of which the cleanest is replaced
    by clean data, so that no prediction is spent where almost no noise is left. The last step is of first
    order and lands on the predicted x_0. dpm++ computes in float32 whatever the dtype of the state.
    """

    needs_noise = False

    def __init__(
        self,
        name: Literal["dpm++", "unipc"],
        schedule: NoiseSchedule,
        prediction_type: PredictionType,
        num_steps: int,
    ) -> None:
        total = schedule.num_timesteps
        grid = schedule.respace(num_steps if num_steps == total else num_steps + 1)
        levels = grid.select(range(grid.num_timesteps - num_steps, grid.num_timesteps))
        self.timesteps: list[int] = levels.timestep_map[::-1].tolist()
        of_noised, of_prediction = clean_coefficients(levels, prediction_type)
        self._of_noised: list[float] = of_noised[::-1].tolist()
        self._of_prediction: list[float] = of_prediction[::-1].tolist()
        self._noise_over_signal = [*levels.sqrt_recipm1_alphas_cumprod[::-1].tolist(), 0.0]
        self._scheduler = _make_scheduler(name, num_steps)
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
            self._scheduler.sigmas = torch.tensor(self._noise_over_signal, dtype=dtype)
        self._next_index += 1
        clean = self._of_noised[index] * noised + self._of_prediction[index] * prediction.to(noised.dtype)
        return self._scheduler.step(clean, self.timesteps[index], noised, return_dict=False)[0]


def _make_scheduler(name: Literal["dpm++", "unipc"], num_steps: int) -> Any:
    """diffusers' scheduler at its first step, taking x_0 and ending at clean data; sigmas yet to be set."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    make = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    scheduler = make(solver_order=2, prediction_type="sample", final_sigmas_type="zero")
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    return scheduler
