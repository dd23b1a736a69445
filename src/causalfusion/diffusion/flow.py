"""Rectified flow: the straight path x_l = (1 - l) x_0 + l ε (2209.03003, 2210.02747).

A level l is a float32 in [0, 1], 0 clean data and 1 pure noise; the velocity is ε - x_0. The literature also
counts time the other way round (SiT, FiTv2, JiT: t = 1 - l, velocity x_0 - ε); `timestep_from` tells the
model that t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig, SamplerName
from causalfusion.diffusion.flow_samplers import euler, heun, sde
from causalfusion.diffusion.levels import draw_unit_levels, fit, shift_levels
from causalfusion.diffusion.multistep import MultistepSampler
from causalfusion.diffusion.process import Process
from causalfusion.diffusion.samplers import Sampler
from causalfusion.errors import UserError

_END = 1e-3
"""How near to pure noise a division by α comes, and the solvers that compute with ln α; diffusers' choice."""


class RectifiedFlow(Process):
    samplers: tuple[SamplerName, ...] = ("euler", "heun", "sde", "dpm++", "unipc")

    def signal(self, levels: Tensor, like: Tensor) -> Tensor:
        return 1 - fit(levels, like)

    def noise_scale(self, levels: Tensor, like: Tensor) -> Tensor:
        return fit(levels, like)

    def clean_factors(
        self, prediction_type: PredictionType, levels: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        level = fit(levels, like)
        if prediction_type == "sample":
            return torch.zeros_like(level), torch.ones_like(level)
        if prediction_type == "velocity":
            return torch.ones_like(level), -level
        level = level.clamp(max=1 - _END)  # pure noise tells nothing of x_0
        return 1 / (1 - level), -level / (1 - level)

    def velocity(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        return noise - clean

    def draw_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return draw_unit_levels(self.config, shape, generator)

    def timesteps(self, levels: Tensor) -> Tensor:
        time = levels if self.config.timestep_from == "clean" else 1 - levels
        return time * self.config.timestep_scale

    def shares(self, levels: Tensor) -> Tensor:
        return levels

    def limited(self, levels: Tensor, limit: int) -> Tensor:
        return levels * min(limit / self.config.num_timesteps, 1.0)

    def within(self, levels: Tensor) -> Tensor:
        least = self.config.least_level
        return levels.clamp(least, 1 - least)

    def density(self, levels: Tensor, like: Tensor) -> Tensor:
        level = fit(levels, like)
        if self.config.loss_weight == "sigma_sqrt":
            return level**-2
        if self.config.loss_weight == "cosmap":
            return 2 / (math.pi * (1 - 2 * level + 2 * level**2))
        return torch.ones_like(level)

    def sampler(self, config: SampleConfig, num_steps: int) -> Sampler:
        self.check_sampler(config.sampler)
        if config.respacing:
            raise UserError(
                "sample.respacing is for chains (diffusion.path ddpm); a flow has sample.level_shift"
            )
        if config.sampler == "sde":
            return sde(config, self, self.grid(config, num_steps - 1, end=config.last_step))
        grid = self.grid(config, num_steps)
        if config.sampler == "euler":
            return euler(self, grid)
        if config.sampler == "heun":
            return heun(self, grid)
        assert config.sampler in ("dpm++", "unipc"), "the others are refused above"
        scales = [min(grid[0], 1 - _END), *grid[1:]]
        return MultistepSampler(
            config.sampler, self.told(grid[:-1]), grid[:-1], self.factors(grid[:-1]), scales, flow=True
        )

    def grid(self, config: SampleConfig, num_steps: int, end: float = 0.0) -> list[float]:
        """num_steps + 1 levels from 1 to `end`, evenly spread, then shifted; float64."""
        # Of pure noise, a prediction of ε says nothing about x_0.
        begin = 1 - _END if self.prediction_type == "epsilon" else 1.0
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

    def num_steps(self, config: SampleConfig) -> list[int]:
        return list(config.diffusion_steps)
