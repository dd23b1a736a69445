"""DPM-Solver++ (2M, 2211.01095) and UniPC (2302.04867), through diffusers' schedulers.

Both integrate the probability flow with the history of earlier predictions: about 10 to 25 steps do what
DDIM needs many more for. diffusers keeps its tables in float32; here the noise levels are set from our
float64 schedule, and predictions are converted to x_0 by our own conversion before they are handed over.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from causalfusion.config import PredictionType
from causalfusion.diffusion.prediction import clean_coefficients
from causalfusion.diffusion.schedule import NoiseSchedule


class MultistepSampler:
    """A `Sampler` with memory: steps must come in order, from a fresh instance for every AR step."""

    needs_noise = False

    def __init__(
        self,
        name: Literal["dpm++", "unipc"],
        schedule: NoiseSchedule,
        prediction_type: PredictionType,
        num_steps: int,
        mode="A",
    ) -> None:
        if mode == "A":
            levels = schedule.respace(num_steps + 1)
            levels = schedule.select(levels.timestep_map[1:]) 
        else:
            levels = schedule.respace(num_steps)
        self.timesteps: list[int] = levels.timestep_map[::-1].tolist()
        of_noised, of_prediction = clean_coefficients(levels, prediction_type)
        self._of_noised: list[float] = of_noised[::-1].tolist()
        self._of_prediction: list[float] = of_prediction[::-1].tolist()
        self._scheduler = _scheduler(name, num_steps)
        sig = levels.sqrt_recipm1_alphas_cumprod[::-1].tolist() + [0.0]
        self._scheduler.timesteps = torch.tensor(self.timesteps)
        self._scheduler.sigmas = torch.tensor(sig, dtype=torch.float64)
        self._scheduler.set_begin_index(0)

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        clean = self._of_noised[index] * noised + self._of_prediction[index] * prediction.to(noised.dtype)
        return self._scheduler.step(clean, self.timesteps[index], noised).prev_sample


def _scheduler(name: Literal["dpm++", "unipc"], num_steps: int) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    cls = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    s = cls(prediction_type="sample", final_sigmas_type="zero")
    s.set_timesteps(num_steps)
    return s
