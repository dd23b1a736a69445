"""The noise schedule: how much signal and how much noise each timestep holds, in float64.

DDPM (Ho et al., 2006.11239): q(x_t | x_0) = N(sqrt(ᾱ_t) x_0, (1 - ᾱ_t) I) with ᾱ_t = Π (1 - β_s).
Respacing keeps some of the timesteps, with β chosen such that their ᾱ do not change (Nichol & Dhariwal,
2102.09672); the result is a schedule again, which remembers the timesteps the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType
from causalfusion.diffusion.levels import fit
from causalfusion.errors import UserError

Table: TypeAlias = NDArray[np.float64]
"""One number per noise level, (N,), level 0 the cleanest."""
Values = TypeVar("Values", Table, Tensor)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """N noise levels. Tables are (N,) float64 and carry the names of the reference's GaussianDiffusion."""

    betas: Table
    timestep_map: NDArray[np.int64]
    """The timestep that the model is told at each level: 0..N-1 unless respaced."""
    _moved: dict[tuple[str, torch.dtype, torch.device], Tensor] = field(default_factory=dict, repr=False)
    """Tables where they are used: a GPU would wait for a copy in every training step."""

    def __post_init__(self) -> None:
        lowest = float(self.alphas_cumprod[-1])
        if not lowest > 1e-30:
            raise UserError(
                f"the noise schedule's last level holds no signal (alphas_cumprod {lowest:.1e}); "
                "expected more than 1e-30: lower diffusion.beta_end or diffusion.num_timesteps"
            )

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> NoiseSchedule:
        betas, every = betas_of(config), np.arange(config.num_timesteps)
        if config.schedule_precision == "float64":
            return cls(betas, every)
        kept = torch.cumprod(1.0 - torch.from_numpy(betas).float(), dim=0).double().numpy()
        return cls(1.0 - kept / _shifted(kept), every)

    @property
    def num_timesteps(self) -> int:
        """N, noise levels of this schedule."""
        return len(self.betas)

    def at(self, name: str, levels: Tensor, like: Tensor) -> Tensor:
        """The values of the table of that name at int64 levels, shaped to multiply `like`, in its dtype."""
        key = (name, like.dtype, like.device)
        if key not in self._moved:
            # Cast before it is moved: some devices have no float64.
            table = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
            self._moved[key] = table.to(like.dtype).to(like.device)
        return fit(self._moved[key][levels.to(like.device)], like)

    def respace(self, num_steps: int) -> NoiseSchedule:
        """Keep `num_steps` levels, evenly spread, both ends included; a single one is the noisiest.

        The reference's "1" keeps t = 0, which asks the model to remove noise that is not there from pure
        noise; one step is useful only from the top.
        """
        if num_steps == 1:
            return self.select([self.num_timesteps - 1])
        return self.select(respacing_timesteps(self.num_timesteps, num_steps))

    def select(self, levels: Sequence[int]) -> NoiseSchedule:
        """The schedule of these levels alone (increasing), each with the ᾱ it had."""
        kept = self.alphas_cumprod[list(levels)]
        return NoiseSchedule(1.0 - kept / _shifted(kept), self.timestep_map[list(levels)])

    @cached_property
    def alphas_cumprod(self) -> Table:
        """ᾱ_t"""
        return np.cumprod(1.0 - self.betas, dtype=np.float64)

    @cached_property
    def alphas_cumprod_prev(self) -> Table:
        """ᾱ of the next cleaner level; 1 (clean data) below level 0."""
        return _shifted(self.alphas_cumprod)

    @cached_property
    def sqrt_alphas_cumprod(self) -> Table:
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Table:
        return np.sqrt(1.0 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Table:
        return np.sqrt(1.0 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Table:
        """sqrt(1 / ᾱ - 1): noise over signal."""
        return np.sqrt(1.0 / self.alphas_cumprod - 1.0)

    @cached_property
    def posterior_mean_coef1(self) -> Table:
        """Factor on x_0 in the mean of q(x_{t-1} | x_t, x_0); DDPM equation 7."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Table:
        """Factor on x_t in that mean."""
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Table:
        """Variance of q(x_{t-1} | x_t, x_0); 0 at level 0."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Table:
        """Logarithm of `posterior_variance`, with level 1's value at level 0, whose own is log 0."""
        return self._log_with_level_1_at_0(self.posterior_variance)

    @cached_property
    def log_betas(self) -> Table:
        return np.log(self.betas)

    def log_variance(self, kind: Literal["fixed_large", "fixed_small"]) -> Table:
        """ln of the variance of a DDPM step: `fixed_large` is β, `fixed_small` the posterior's.

        Level 0 has the posterior's value of level 1 in both, as in the reference; no noise is added there.
        """
        if kind == "fixed_small":
            return self.posterior_log_variance_clipped
        return self._log_with_level_1_at_0(self.betas)

    def _log_with_level_1_at_0(self, variance: Table) -> Table:
        # With one level there is no level 1; β is finite, and no noise is added at level 0.
        first = self.posterior_variance[1:2] if self.num_timesteps > 1 else self.betas
        return np.log(np.concatenate([first, variance[1:]]))


def betas_of(config: DiffusionConfig) -> Table:
    """β of every timestep: from beta_start to beta_end, both included, `linear` or linear in the square root
    (`scaled_linear`) or along a logistic curve (`sigmoid`); `cosine`: ᾱ(u) = cos²(π/2 (u + s) / (1 + s)) at
    u = t / N with offset s (Nichol & Dhariwal: 0.008; Transfusion: 0), β at most 0.999; `cauchy`, `laplace`:
    ᾱ(u) from the log signal-to-noise ratio with that distribution (2407.03297), likewise."""
    total = config.num_timesteps
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, total, dtype=np.float64)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(config.beta_start**0.5, config.beta_end**0.5, total, dtype=np.float64) ** 2
    if config.beta_schedule == "sigmoid":
        curve = 1 / (1 + np.exp(-np.linspace(-6, 6, total, dtype=np.float64)))
        return curve * (config.beta_end - config.beta_start) + config.beta_start
    u = np.arange(total + 1, dtype=np.float64) / total
    signal = _signal_of(config, u)
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)


def _signal_of(config: DiffusionConfig, u: Table) -> Table:
    """ᾱ at the shares u of the chain."""
    if config.beta_schedule == "cauchy":
        return 1 - 1 / (np.exp(3 + np.tan(np.pi * (0.5 - u) * 0.9)) + 1.1)
    if config.beta_schedule == "laplace":
        log_snr = -np.sign(0.5 - u) * np.log(1 - 2 * np.abs(u - 0.5) * 0.98)
        return 1 - 1 / (np.exp(log_snr) + 1.02)
    offset = config.cosine_offset
    return np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2


def clean_factors(prediction_type: PredictionType, table: Callable[[str], Values]) -> tuple[Values, Values]:
    """(a, b) with x_0 = a x_t + b prediction, from the values of a schedule's tables by their names."""
    if prediction_type == "epsilon":
        return table("sqrt_recip_alphas_cumprod"), -table("sqrt_recipm1_alphas_cumprod")
    signal = table("sqrt_alphas_cumprod")
    if prediction_type == "v_prediction":
        return signal, -table("sqrt_one_minus_alphas_cumprod")
    return 0 * signal, 0 * signal + 1


def clean_tables(schedule: NoiseSchedule, prediction_type: PredictionType) -> tuple[Table, Table]:
    """The factors of `clean_factors` at every level."""
    return clean_factors(prediction_type, lambda name: getattr(schedule, name))


def respacing_timesteps(num_timesteps: int, spec: int | str) -> list[int]:
    """The timesteps that a respacing of the reference keeps, increasing, to the letter.

    "" keeps all; "10" (or 10) spreads 10 evenly, both ends included ("1": t = 0); "10,15,20" divides the
    range into equal sections, the cleanest first, with that many each; "ddim25" takes the integer stride
    that gives 25 timesteps from 0 on.
    """
    if isinstance(spec, int):
        return _sections(num_timesteps, [spec])
    if spec == "":
        return list(range(num_timesteps))
    try:
        if spec.startswith("ddim"):
            return _integer_stride(num_timesteps, int(spec.removeprefix("ddim")))
        return _sections(num_timesteps, [int(part) for part in spec.split(",")])
    except UserError:
        raise
    except ValueError:
        raise UserError(f'respacing is {spec!r}; expected "", "10", "10,15,20" or "ddim25"') from None


def _sections(num_timesteps: int, counts: list[int]) -> list[int]:
    size, remainder = divmod(num_timesteps, len(counts))
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        length = size + (index < remainder)
        if not 1 <= count <= length:
            raise UserError(f"diffusion steps are {count}; expected 1 to {length}, the timesteps there are")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied: the reference's rounding of halves depends on the accumulated error.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def _integer_stride(num_timesteps: int, count: int) -> list[int]:
    for stride in range(1, num_timesteps + 1):
        kept = range(0, num_timesteps, stride)
        if len(kept) == count:
            return list(kept)
    raise UserError(
        f"respacing is 'ddim{count}'; expected a number of timesteps that an integer stride "
        f"through {num_timesteps} gives"
    )


def _shifted(table: Table) -> Table:
    return np.concatenate([[1.0], table[:-1]])
