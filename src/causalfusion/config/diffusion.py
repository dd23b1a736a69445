"""The settings of the noise: path, predictions, levels, weights (DESIGN section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from causalfusion.errors import check, check_finite

PredictionType = Literal["epsilon", "v_prediction", "sample", "velocity"]
_OF_PATH: dict[str, tuple[str, ...]] = {
    "ddpm": ("epsilon", "v_prediction", "sample"),
    "rectified_flow": ("epsilon", "sample", "velocity"),
}


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    path: Literal["ddpm", "rectified_flow"] = "ddpm"
    """From data to noise: DDPM's chain of discrete levels, or the straight path of flow matching."""
    num_timesteps: int = 1000
    """Noise levels of the diffusion process; rectified_flow: the number that integers in other settings,
    such as text.max_context_timestep, refer to."""
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """ddpm: how the noise added at each timestep grows; scaled_linear is linear in its square root."""
    beta_start: float = 1e-4
    """Noise added at the first timestep."""
    beta_end: float = 0.02
    """Noise added at the last timestep."""
    cosine_offset: float = 0.008
    """Offset s of the cosine schedule (2102.09672; Transfusion: 0)."""
    prediction_type: PredictionType = "epsilon"
    """What the model predicts: the noise, v (ddpm only), the clean sample, or the path's velocity
    (rectified_flow only)."""
    variance: Literal["fixed", "learned_range"] = "fixed"
    """ddpm with epsilon: learned_range also predicts the variance of each step, between its bounds."""
    error_in: Literal["prediction", "epsilon", "v_prediction", "sample", "velocity"] = "prediction"
    """The quantity whose squared error is minimised: that predicted, or another that follows from it."""
    loss_weight: Literal["none", "min_snr", "sigma_sqrt", "cosmap", "likelihood"] = "none"
    """Weight of each noise level: none; the error of x_0 times its signal-to-noise ratio, that at most
    `snr_limit` (min-SNR, 2303.09556); or, for rectified_flow, sigma_sqrt and cosmap (2403.03206), or
    likelihood, the error of the noise divided by its share and the signal's (SiT, 2401.08740)."""
    snr_limit: float = 5.0
    """Largest weight of loss_weight min_snr."""
    least_level: float = 0.05
    """rectified_flow: weights that divide by noise or signal grow no further this near to either end."""
    level_distribution: Literal["uniform", "logit_normal"] = "uniform"
    """How training draws noise levels; logit_normal: the logistic function of a normal variable."""
    level_mean: float = 0.0
    """Mean of that normal variable; above 0: more noise."""
    level_std: float = 1.0
    """Its standard deviation."""
    level_shift: float = 1.0
    """s in s l / (1 + (s - 1) l), applied to every drawn level l (0 clean, 1 noise): above 1 more noise."""
    level_range: tuple[float, float] = (0.0, 1.0)
    """The part of the path that drawn levels are squeezed into; 0 is clean, 1 pure noise."""
    timestep_scale: float = 1000.0
    """rectified_flow: what the model is told is the level times this (SiT, FiTv2, JiT: 1)."""
    timestep_from: Literal["clean", "noise"] = "clean"
    """rectified_flow: the end where what the model is told is 0 (SiT, FiTv2, JiT: noise)."""

    def __post_init__(self) -> None:
        check_finite(self, "diffusion")
        self._check_numbers()
        self._check_combination()

    def _check_numbers(self) -> None:
        check(
            1 <= self.num_timesteps <= 1_000_000,
            "diffusion.num_timesteps", self.num_timesteps, "1 to 1000000",
        )  # fmt: skip
        check(
            0 < self.beta_start <= self.beta_end < 1,
            "diffusion.beta_start, beta_end", (self.beta_start, self.beta_end), "0 < start <= end < 1",
        )  # fmt: skip
        check(
            0 <= self.cosine_offset < 1, "diffusion.cosine_offset", self.cosine_offset, "0 or more, below 1"
        )
        for name in ("snr_limit", "level_std", "level_shift", "timestep_scale"):
            check(getattr(self, name) > 0, f"diffusion.{name}", getattr(self, name), "a positive number")
        check(0 < self.least_level < 0.5, "diffusion.least_level", self.least_level, "a number in (0, 0.5)")
        low, high = self.level_range
        check(0 <= low < high <= 1, "diffusion.level_range", self.level_range, "0 <= low < high <= 1")

    def _check_combination(self) -> None:
        possible = _OF_PATH[self.path]
        expected = f"one of {', '.join(possible)}, for path {self.path}"
        check(self.prediction_type in possible, "diffusion.prediction_type", self.prediction_type, expected)
        check(
            self.error_in in ("prediction", *possible),
            "diffusion.error_in", self.error_in, f"prediction or {expected}",
        )  # fmt: skip
        check(
            self.error_in == "prediction" or self.loss_weight not in ("min_snr", "likelihood"),
            "diffusion.error_in", self.error_in, f"prediction, for loss_weight {self.loss_weight}",
        )  # fmt: skip
        check(
            self.path == "rectified_flow" or self.loss_weight in ("none", "min_snr"),
            "diffusion.loss_weight", self.loss_weight, "none or min_snr, for path ddpm",
        )  # fmt: skip
        fits = self.path == "ddpm" and self.prediction_type == "epsilon" and self.error_in == "prediction"
        check(
            self.variance == "fixed" or (fits and self.loss_weight == "none"),
            "diffusion.variance", self.variance,
            "fixed, unless path is ddpm, prediction_type epsilon, and errors are not weighted",
        )  # fmt: skip
