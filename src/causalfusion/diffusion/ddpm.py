"""DDPM: a chain of discrete noise levels (Ho et al., 2006.11239), with everything that belongs to it.

A level is a timestep t, int64, 0 the cleanest of N; the model is told t itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType, SampleConfig, SamplerName
from causalfusion.diffusion.chain import ddim, ddpm
from causalfusion.diffusion.levels import divided, draw_unit_levels
from causalfusion.diffusion.multistep import multistep_ddpm
from causalfusion.diffusion.process import NoisedTokens, Process
from causalfusion.diffusion.samplers import Sampler
from causalfusion.diffusion.schedule import NoiseSchedule, clean_factors, respacing_timesteps
from causalfusion.diffusion.variance import variational_term
from causalfusion.errors import UserError
from causalfusion.machine.runtime import widest_float


class DDPM(Process):
    samplers: tuple[SamplerName, ...] = ("ddpm", "ddim", "dpm++", "unipc")

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.schedule = NoiseSchedule.from_config(config)
        self._weights: dict[torch.device, Tensor] = {}
        """Loss weights of all levels, computed in float64, by the device where they are used."""

    def signal(self, levels: Tensor, like: Tensor) -> Tensor:
        return self.schedule.at("sqrt_alphas_cumprod", levels, like)

    def noise_scale(self, levels: Tensor, like: Tensor) -> Tensor:
        return self.schedule.at("sqrt_one_minus_alphas_cumprod", levels, like)

    def clean_factors(
        self, prediction_type: PredictionType, levels: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        return clean_factors(prediction_type, lambda name: self.schedule.at(name, levels, like))

    def velocity(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        raise ValueError("a chain of discrete levels has no velocity; DiffusionConfig refuses it")

    def draw_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        config, total = self.config, self.schedule.num_timesteps
        plain = (config.level_distribution, config.level_shift, config.level_range)
        if plain == ("uniform", 1.0, (0.0, 1.0)):
            return torch.randint(total, shape, generator=generator)
        return (draw_unit_levels(config, shape, generator) * total).long().clamp(max=total - 1)

    def snr(self, levels: Tensor, like: Tensor) -> Tensor:
        return 1.0 / self.schedule.at("sqrt_recipm1_alphas_cumprod", levels, like) ** 2

    def weight(self, levels: Tensor) -> Tensor:
        if levels.device not in self._weights:
            every = torch.arange(self.schedule.num_timesteps)
            weights = self._weight(every, torch.ones(len(every), dtype=torch.float64))
            self._weights[levels.device] = weights.float().to(levels.device)
        return self._weights[levels.device][levels]

    def timesteps(self, levels: Tensor) -> Tensor:
        return levels

    def shares(self, levels: Tensor) -> Tensor:
        return levels.to(widest_float(levels.device)) / self.schedule.num_timesteps

    def levels_at(self, shares: Tensor) -> Tensor:
        total = self.schedule.num_timesteps
        # A small addition, so that a float32 share that is a whole level is not rounded below it.
        return (shares.to(widest_float(shares.device)) * total + 1e-3).long().clamp(0, total - 1)

    def limited(self, levels: Tensor, limit: int) -> Tensor:
        total = self.schedule.num_timesteps
        return levels * min(limit, total) // total

    def errors(self, prediction: Tensor, tokens: NoisedTokens) -> Tensor:
        """With learned variances (B, n, 2P), the variational term in bits is added, whose gradient reaches
        the variances alone (Nichol & Dhariwal, 2102.09672)."""
        if self.config.variance == "fixed":
            return super().errors(prediction, tokens)
        epsilon, variance = prediction.float().chunk(2, dim=-1)
        clean = self.to_clean(epsilon.detach(), tokens.noised, tokens.levels)
        return super().errors(epsilon, tokens) + variational_term(
            self.schedule, clean, tokens.clean, tokens.noised, variance, tokens.levels
        )

    def _sampler(self, config: SampleConfig, num_steps: int) -> Sampler:
        if config.sampler in ("dpm++", "unipc"):
            self._refuse_respacing(config)
            return multistep_ddpm(config, self.schedule, self.prediction_type, num_steps)
        respaced, total = self.respaced(config, num_steps), self.schedule.num_timesteps
        if config.sampler == "ddpm":
            return ddpm(config, respaced, self.prediction_type, total, self.variance_of(config))
        return ddim(config, respaced, self.prediction_type, total)

    def variance_of(self, config: SampleConfig) -> Literal["fixed_large", "fixed_small", "learned_range"]:
        """The variance of DDPM's steps: the model's own where it predicts one."""
        return "learned_range" if self.config.variance == "learned_range" else config.variance

    def respaced(self, config: SampleConfig, num_steps: int) -> NoiseSchedule:
        """The levels of `num_steps` diffusion steps, evenly spread or as `respacing` says."""
        if not config.respacing:
            return self.schedule.respace(num_steps)
        kept = respacing_timesteps(self.schedule.num_timesteps, config.respacing)
        if len(kept) != num_steps:
            raise UserError(
                f"sample.respacing {config.respacing!r} gives {len(kept)} diffusion steps, not {num_steps}"
            )
        return self.schedule.select(kept)

    def _refuse_respacing(self, config: SampleConfig) -> None:
        if config.respacing:
            raise UserError(f"sample.respacing is for ddpm and ddim; {config.sampler} spaces its own steps")

    def subdivided(self, sampler: Sampler, points: int) -> Tensor:
        starts = torch.tensor([-1, *sampler.timesteps[::-1]], dtype=torch.float64)  # -1: clean data
        return divided(starts, points).round().long()

    def num_steps(self, config: SampleConfig) -> list[int]:
        if config.respacing:
            return [len(respacing_timesteps(self.schedule.num_timesteps, config.respacing))]
        most, total = max(config.diffusion_steps), self.schedule.num_timesteps
        if most > total:
            raise UserError(
                f"sample.diffusion_steps is {most}; the model was trained with {total} noise levels, which "
                "is the most there can be"
            )
        return list(config.diffusion_steps)
