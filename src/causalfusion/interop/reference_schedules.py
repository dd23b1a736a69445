"""Replaying recorded noise schedules: every table of every respacing, in float64."""

from __future__ import annotations

import json

import numpy as np
import torch

from causalfusion.config import DiffusionConfig
from causalfusion.diffusion.schedule import NoiseSchedule, respacing_timesteps
from causalfusion.interop.recording import Recording

_TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "posterior_log_variance_clipped",
)


def replay_schedules(recording: Recording) -> None:
    """Compare the tensors `RESPACING/table`; the respacing "" is recorded as `full`."""
    full = NoiseSchedule.from_config(DiffusionConfig())
    for spec in json.loads(recording.setting("respacings")):
        schedule = full.select(respacing_timesteps(full.num_timesteps, spec))
        prefix = (spec or "full") + "/"
        for name in _TABLES:
            ours = torch.from_numpy(np.ascontiguousarray(getattr(schedule, name)))
            recording.compare(prefix + name, ours, "noise schedules")
        large = torch.from_numpy(schedule.log_variance("fixed_large"))
        recording.compare(prefix + "model_log_variance_fixed_large", large, "noise schedules")
        recording.compare(prefix + "timestep_map", torch.from_numpy(schedule.timestep_map), "timesteps")
