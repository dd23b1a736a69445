"""Flows: paths in continuous time from data to noise (2209.03003, 2210.02747), and the straight one of them.

A level l is a float32 in [0, 1], 0 clean data and 1 pure noise; the velocity is dx/dl. The literature also
counts time the other way round (SiT, FiTv2, JiT: t = 1 - l, velocity towards the data); `timestep_from` tells
the model that t.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig, SamplerName
from causalfusion.diffusion.flow_samplers import euler, heun
from causalfusion.diffusion.levels import divided, draw_unit_levels, fit, shift_levels
from causalfusion.diffusion.multistep import MultistepSampler
from causalfusion.diffusion.process import Process
from causalfusion.diffusion.samplers import Sampler
from causalfusion.diffusion.sde import sde, sde_heun
from causalfusion.errors import UserError

_END = 1e-3
"""How near to pure noise a division by α comes, and the solvers that compute with ln α; diffusers' choice."""


class Flow(Process):
    samplers: tuple[SamplerName, ...] = ("euler", "heun", "sde", "sde_heun", "dpm++", "unipc")

    @abstractmethod
    def signal_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        """dα/dl."""

    @abstractmethod
    def noise_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        """dσ/dl."""

    def clean_factors(
        self, prediction_type: PredictionType, levels: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        if prediction_type == "sample":
            zero = torch.zeros_like(fit(levels, like))
            return zero, zero + 1
        if prediction_type == "velocity":
            noise_scale, noise_slope = self.noise_scale(levels, like), self.noise_slope(levels, like)
            turned = noise_scale * self.signal_slope(levels, like) - self.signal(levels, like) * noise_slope
            return -noise_slope / turned, noise_scale / turned
        levels = levels.clamp(max=1 - _END)  # pure noise tells nothing of x_0
        signal, noise_scale = self.signal(levels, like), self.noise_scale(levels, like)
        of_score = noise_scale if prediction_type == "score" else -1.0
        return 1 / signal, noise_scale / signal * of_score

    def velocity(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        return self.signal_slope(levels, clean) * clean + self.noise_slope(levels, clean) * noise

    def snr_rate(self, levels: Tensor, like: Tensor) -> Tensor:
        of_noise = self.noise_slope(levels, like) / self.noise_scale(levels, like)
        return of_noise - self.signal_slope(levels, like) / self.signal(levels, like)

    def draw_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return draw_unit_levels(self.config, shape, generator)

    def timesteps(self, levels: Tensor) -> Tensor:
        time = levels if self.config.timestep_from == "clean" else 1 - levels
        return shift_levels(time, self.config.timestep_shift) * self.config.timestep_scale

    def shares(self, levels: Tensor) -> Tensor:
        return levels

    def levels_at(self, shares: Tensor) -> Tensor:
        return shares.float()

    def limited(self, levels: Tensor, limit: int) -> Tensor:
        return levels * min(limit / self.config.num_timesteps, 1.0)

    def within(self, levels: Tensor) -> Tensor:
        least = self.config.least_level
        return levels.clamp(least, 1 - least)

    # --- generation -----------------------------------------------------------------------------------

    def _sampler(self, config: SampleConfig, num_steps: int) -> Sampler:
        if config.respacing:
            raise UserError(
                "sample.respacing is for chains (diffusion.path ddpm); a flow has sample.level_shift"
            )
        if config.sampler in ("sde", "sde_heun"):
            ends = config.last_step_rule == "none"
            grid = self.grid(config, num_steps - (not ends), end=0.0 if ends else config.last_step)
            return (sde if config.sampler == "sde" else sde_heun)(config, self, grid)
        grid = self.grid(config, num_steps)
        if config.sampler == "euler":
            return euler(self, grid)
        if config.sampler == "heun":
            return heun(self, grid)
        assert config.sampler in ("dpm++", "unipc"), "the others are refused above"
        levels, factors = grid[:-1], self.factors(grid[:-1])
        scales, straight = self.solver_scales(grid)
        return MultistepSampler(
            config.sampler,
            self.told(levels),
            levels,
            factors,
            scales,
            order=config.solver_order,
            flow=straight,
        )

    def solver_scales(self, grid: list[float]) -> tuple[list[float], bool]:
        """(σ, or with False noise over signal, for the solvers that compute with their logarithm)."""
        level = torch.tensor([min(grid[0], 1 - _END), *grid[1:]], dtype=torch.float64)
        return (self.noise_scale(level, level) / self.signal(level, level)).tolist(), False

    def grid(self, config: SampleConfig, num_steps: int, end: float = 0.0) -> list[float]:
        """num_steps + 1 levels from 1 to `end`, evenly spread, then shifted; float64."""
        # Of pure noise, a prediction of ε says nothing about x_0, and the path's own noise has no bound.
        of_noise = self.prediction_type in ("epsilon", "score")
        own = config.sampler in ("sde", "sde_heun") and config.sde_noise == "sbdm"
        begin = 1 - _END if of_noise or own else 1.0
        even = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return (end + (begin - end) * shift_levels(even, config.level_shift)).tolist()

    def told(self, levels: list[float]) -> list[float]:
        """The timesteps that the model is told at these levels."""
        return self.timesteps(torch.tensor(levels, dtype=torch.float64)).tolist()

    def factors(self, levels: list[float]) -> list[tuple[float, float]]:
        """(a, b) with x_0 = a x + b prediction at each level, from float64."""
        level = torch.tensor(levels, dtype=torch.float64)
        of_noised, of_prediction = self.clean_factors(self.prediction_type, level, level)
        return list(zip(of_noised.tolist(), of_prediction.tolist(), strict=True))

    def slope_factors(self, level: float) -> tuple[float, float]:
        """(a, b) with velocity = a x + b x_0 at a level above 0."""
        of_signal, of_noise, signal_slope, noise_slope = self.at(level)
        return noise_slope / of_noise, signal_slope - of_signal * noise_slope / of_noise

    def at(self, level: float) -> tuple[float, float, float, float]:
        """(α, σ, dα/dl, dσ/dl), from float64."""
        at = torch.tensor(level, dtype=torch.float64)
        functions = (self.signal, self.noise_scale, self.signal_slope, self.noise_slope)
        alpha, sigma, signal_slope, noise_slope = (float(f(at, at)) for f in functions)
        return alpha, sigma, signal_slope, noise_slope

    def subdivided(self, sampler: Sampler, points: int) -> Tensor:
        return divided(torch.tensor([0.0, *sampler.shares[::-1]], dtype=torch.float64), points).float()

    def num_steps(self, config: SampleConfig) -> list[int]:
        return list(config.diffusion_steps)


class RectifiedFlow(Flow):
    """The straight path x_l = (1 - l) x_0 + l ε, whose velocity is ε - x_0."""

    def signal(self, levels: Tensor, like: Tensor) -> Tensor:
        return 1 - fit(levels, like)

    def noise_scale(self, levels: Tensor, like: Tensor) -> Tensor:
        return fit(levels, like)

    def signal_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        return -torch.ones_like(fit(levels, like))

    def noise_slope(self, levels: Tensor, like: Tensor) -> Tensor:
        return torch.ones_like(fit(levels, like))

    def clean_factors(
        self, prediction_type: PredictionType, levels: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        if prediction_type != "velocity":
            return super().clean_factors(prediction_type, levels, like)
        level = fit(levels, like)
        return torch.ones_like(level), -level

    def velocity(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        return noise - clean

    def snr_rate(self, levels: Tensor, like: Tensor) -> Tensor:
        return 1 / (self.signal(levels, like) * self.noise_scale(levels, like))

    def density(self, levels: Tensor, like: Tensor) -> Tensor:
        level = fit(levels, like)
        if self.config.loss_weight == "sigma_sqrt":
            return level**-2
        if self.config.loss_weight == "cosmap":
            return 2 / (math.pi * (1 - 2 * level + 2 * level**2))
        return torch.ones_like(level)

    def solver_scales(self, grid: list[float]) -> tuple[list[float], bool]:
        return [min(grid[0], 1 - _END), *grid[1:]], True
