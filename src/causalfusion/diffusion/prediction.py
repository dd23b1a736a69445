"""What the model predicts, and how each kind of prediction gives the others.

With x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (DDPM equation 4), a model may predict ε (`epsilon`), x_0
(`sample`) or v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) x_0 (`v_prediction`; Salimans & Ho, 2202.00512). Each
conversion is linear in (x_t, prediction), so it commutes with guidance; the factors are float64 tables.

Tensors are (B, ...), such as tokens (B, L, P) or latents (B, C, H, W); `timesteps` are int64 levels of the
schedule given, shaped like their leading dimensions: (B,), or (B, L) for a level per token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType
from causalfusion.diffusion.schedule import NoiseSchedule, Table


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t of x_0 and ε."""
    signal = _gather(schedule.sqrt_alphas_cumprod, timesteps, clean)
    return signal * clean + _gather(schedule.sqrt_one_minus_alphas_cumprod, timesteps, clean) * noise


def training_target(
    clean: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule, prediction_type: PredictionType
) -> Tensor:
    """What a perfect model that knew x_0 and ε would predict."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    signal = _gather(schedule.sqrt_alphas_cumprod, timesteps, clean)
    return signal * noise - _gather(schedule.sqrt_one_minus_alphas_cumprod, timesteps, clean) * clean


def level_weights(schedule: NoiseSchedule, config: DiffusionConfig) -> Table:
    """What the squared error of a prediction counts at each noise level."""
    if config.loss_weight == "none":
        return np.ones_like(schedule.betas)
    # The same error of x_0 is `of_prediction` times smaller or larger in what is predicted.
    _, of_prediction = clean_coefficients(schedule, config.prediction_type)
    snr = 1.0 / schedule.sqrt_recipm1_alphas_cumprod**2
    return np.minimum(snr, config.snr_limit) * of_prediction**2


def to_clean(
    prediction: Tensor,
    noised: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Tensor:
    """The x_0 that the prediction means, in the dtype of `noised`."""
    of_noised, of_prediction = clean_coefficients(schedule, prediction_type)
    return _combine(of_noised, of_prediction, prediction, noised, timesteps)


def to_epsilon(
    prediction: Tensor,
    noised: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Tensor:
    """The ε that the prediction means, in the dtype of `noised`."""
    of_noised, of_prediction = epsilon_coefficients(schedule, prediction_type)
    return _combine(of_noised, of_prediction, prediction, noised, timesteps)


def clean_coefficients(schedule: NoiseSchedule, prediction_type: PredictionType) -> tuple[Table, Table]:
    """(a, b) with x_0 = a x_t + b prediction at every level."""
    if prediction_type == "epsilon":
        return schedule.sqrt_recip_alphas_cumprod, -schedule.sqrt_recipm1_alphas_cumprod
    if prediction_type == "v_prediction":
        return schedule.sqrt_alphas_cumprod, -schedule.sqrt_one_minus_alphas_cumprod
    return np.zeros_like(schedule.betas), np.ones_like(schedule.betas)


def epsilon_coefficients(schedule: NoiseSchedule, prediction_type: PredictionType) -> tuple[Table, Table]:
    """(a, b) with ε = a x_t + b prediction at every level."""
    if prediction_type == "epsilon":
        return np.zeros_like(schedule.betas), np.ones_like(schedule.betas)
    if prediction_type == "v_prediction":
        return schedule.sqrt_one_minus_alphas_cumprod, schedule.sqrt_alphas_cumprod
    inverse = 1.0 / schedule.sqrt_one_minus_alphas_cumprod
    return inverse, -schedule.sqrt_alphas_cumprod * inverse


def _combine(
    of_noised: Table, of_prediction: Table, prediction: Tensor, noised: Tensor, timesteps: Tensor
) -> Tensor:
    # A bf16 prediction joins a float32 x_t in float32: the factors reach 1 / sqrt(ᾱ_T), about 157.
    kept = _gather(of_noised, timesteps, noised) * noised
    return kept + _gather(of_prediction, timesteps, noised) * prediction.to(noised.dtype)


def _gather(table: Table, timesteps: Tensor, like: Tensor) -> Tensor:
    """The table's values at `timesteps`, cast once to the dtype of `like` and shaped to multiply it."""
    # Cast before it is moved: some devices have no float64.
    values = torch.from_numpy(table).to(like.dtype).to(like.device)[timesteps.to(like.device)]
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
