"""Settings of the diffusion process: path, prediction, noise levels, loss weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from causalfusion.errors import check, check_values

PredictionType = Literal["epsilon", "v_prediction", "sample", "velocity", "score"]
_OF_FLOWS = ("epsilon", "sample", "velocity", "score")
_PREDICTIONS: dict[str, tuple[str, ...]] = {
    "ddpm": ("epsilon", "v_prediction", "sample"),
    "rectified_flow": _OF_FLOWS,
    "gvp": _OF_FLOWS,
    "vp": _OF_FLOWS,
}
"""Prediction types of each path."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    path: Literal["ddpm", "rectified_flow", "gvp", "vp"] = "ddpm"
    """Path from data to noise: DDPM's chain of discrete levels; or a flow: the straight path of flow
    matching, the quarter circle (gvp) or DDPM's path in continuous time (vp; SiT, arXiv 2401.08740)."""
    num_timesteps: int = 1000
    """Number of discrete noise levels; for flows, the timestep of pure noise in other settings, such as
    text.max_context_timestep."""
    beta_schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "cauchy", "laplace"] = "linear"
    """ddpm: growth of the noise added at each timestep; scaled_linear is linear in its square root. cauchy
    and laplace: the log signal-to-noise ratio has such a distribution (arXiv 2407.03297)."""
    schedule_precision: Literal["float64", "float32"] = "float64"
    """ddpm: number format in which the signal that is left at each timestep is computed; models of some other
    code were trained with float32, which tells at the noisiest timesteps."""
    beta_start: float = 1e-4
    """ddpm: noise added at the first timestep."""
    beta_end: float = 0.02
    """ddpm: noise added at the last timestep."""
    cosine_offset: float = 0.008
    """Offset s of the cosine schedule (arXiv 2102.09672; Transfusion: 0)."""
    prediction_type: PredictionType = "epsilon"
    """Quantity that the model predicts: the noise, v (ddpm only), the clean sample, or for flows the path's
    velocity or the score, noise over its scale with the opposite sign (train that with error_in epsilon)."""
    variance: Literal["fixed", "learned_range"] = "fixed"
    """ddpm with epsilon: learned_range also predicts the variance of each step, between its bounds."""
    error_in: Literal["prediction", "epsilon", "v_prediction", "sample", "velocity", "score"] = "prediction"
    """Quantity whose squared error is minimised: the predicted one, or another that is computed from it."""
    loss_weight: Literal["none", "min_snr", "sigma_sqrt", "cosmap", "likelihood"] = "none"
    """Weight of each noise level. min_snr: the error of x_0 times its signal-to-noise ratio, the ratio capped
    at `snr_limit` (arXiv 2303.09556). For rectified_flow only: sigma_sqrt and cosmap (arXiv 2403.03206). For
    flows: likelihood, the error of the noise times the growth of the logarithm of noise over signal (SiT,
    arXiv 2401.08740)."""
    snr_limit: float = 5.0
    """min_snr: cap of the signal-to-noise ratio."""
    least_level: float = 0.05
    """Flows: loss weights treat levels closer than this to either end as if they were this far."""
    level_distribution: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the noise levels in training; logit_normal: the logistic function of a normal
    variable."""
    level_mean: float = 0.0
    """logit_normal: mean of the normal variable; above 0 means more noise."""
    level_std: float = 1.0
    """logit_normal: standard deviation of the normal variable."""
    level_shift: float = 1.0
    """s in s l / (1 + (s - 1) l), applied to every drawn level l (0 clean, 1 noise); above 1 means more
    noise."""
    level_range: tuple[float, float] = (0.0, 1.0)
    """Part of the path to which drawn levels are rescaled; 0 is clean, 1 pure noise."""
    timestep_scale: float = 1000.0
    """Flows: the model's timestep is the level times this (SiT, FiTv2, JiT: 1)."""
    timestep_from: Literal["clean", "noise"] = "clean"
    """Flows: the end of the path at which the model's timestep is 0 (SiT, FiTv2, JiT: noise)."""
    timestep_shift: float = 1.0
    """Flows: s in s t / (1 + (s - 1) t), applied to the time t in [0, 1] that the model is told, not to the
    level itself (FiTv2's time_shifting)."""

    def __post_init__(self) -> None:
        check_values(self, "diffusion")
        self._check_numbers()
        self._check_combination()

    def _check_numbers(self) -> None:
        in_range = 1 <= self.num_timesteps <= 1_000_000
        check(in_range, "diffusion.num_timesteps", self.num_timesteps, "1 to 1000000")
        betas = (self.beta_start, self.beta_end)
        check(0 < betas[0] <= betas[1] < 1, "diffusion.beta_start, beta_end", betas, "0 < start <= end < 1")
        check(
            0 <= self.cosine_offset < 1, "diffusion.cosine_offset", self.cosine_offset, "0 or more, below 1"
        )
        for name in ("snr_limit", "level_std", "level_shift", "timestep_scale", "timestep_shift"):
            check(getattr(self, name) > 0, f"diffusion.{name}", getattr(self, name), "a positive number")
        check(0 < self.least_level < 0.5, "diffusion.least_level", self.least_level, "a number in (0, 0.5)")
        low, high = self.level_range
        check(0 <= low < high <= 1, "diffusion.level_range", self.level_range, "0 <= low < high <= 1")

    def _check_combination(self) -> None:
        possible = _PREDICTIONS[self.path]
        expected = f"one of {', '.join(possible)}, for path {self.path}"
        check(self.prediction_type in possible, "diffusion.prediction_type", self.prediction_type, expected)
        fits = self.error_in in ("prediction", *possible)
        check(fits, "diffusion.error_in", self.error_in, f"prediction or {expected}")
        fits = self.error_in == "prediction" or self.loss_weight not in ("min_snr", "likelihood")
        check(fits, "diffusion.error_in", self.error_in, f"prediction, for loss_weight {self.loss_weight}")
        weights = {"ddpm": ("none", "min_snr"), "rectified_flow": (self.loss_weight,)}
        possible = weights.get(self.path, ("none", "min_snr", "likelihood"))
        expected = f"one of {', '.join(possible)}, for path {self.path}"
        check(self.loss_weight in possible, "diffusion.loss_weight", self.loss_weight, expected)
        plain = self.path == "ddpm" and self.prediction_type == "epsilon" and self.error_in == "prediction"
        fits = self.variance == "fixed" or (plain and self.loss_weight == "none")
        expected = "fixed, unless path is ddpm, prediction_type epsilon, and errors are not weighted"
        check(fits, "diffusion.variance", self.variance, expected)
