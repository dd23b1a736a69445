"""The process: all that is to be known about noise.

A process owns the path from clean tokens to noise, what the model predicts, how noise levels are drawn, what
an error counts at each level, and which samplers exist. Nothing outside this package knows what a level is
made of: `levels` tensors are made by `draw_levels` and handed back.

With x_l = α(l) x_0 + σ(l) ε at level l, a model may predict ε (`epsilon`), x_0 (`sample`), v = α ε - σ x_0
(`v_prediction`; Salimans & Ho, 2202.00512), dx/dl (`velocity`) or -ε / σ (`score`). All of them are linear in
(x_0, ε), so each gives the others, and conversions commute with guidance.

Shapes: tokens (B, n, P) or latents (B, C, H, W); levels have the leading dimensions, (B,), (B, 1) or (B, n).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType, SampleConfig, SamplerName
from causalfusion.diffusion.samplers import Sampler
from causalfusion.errors import UserError

_LEAST_NOISE = 1e-5
"""σ by which noise is divided at least."""


@dataclass(frozen=True)
class NoisedTokens:
    """Tokens on their way to noise, all in the same order."""

    clean: Tensor
    noise: Tensor
    """Standard normal."""
    levels: Tensor
    noised: Tensor
    """x_l, the model's input."""
    target: Tensor
    """The prediction of a perfect model that knew `clean` and `noise`."""


class Process(ABC):
    """One path with its settings. Immutable; holds no state of a run."""

    samplers: tuple[SamplerName, ...]
    """Names of the samplers that this path has; the first is the one that `auto` stands for."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config

    @property
    def prediction_type(self) -> PredictionType:
        return self.config.prediction_type

    # --- the path -------------------------------------------------------------------------------------

    # Factors at each level come shaped to multiply `like`, in its dtype.

    @abstractmethod
    def signal(self, levels: Tensor, like: Tensor) -> Tensor:
        """α."""

    @abstractmethod
    def noise_scale(self, levels: Tensor, like: Tensor) -> Tensor:
        """σ."""

    @abstractmethod
    def clean_factors(
        self, prediction_type: PredictionType, levels: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(a, b) with x_0 = a x_l + b prediction."""

    @abstractmethod
    def draw_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Levels for training, from the distribution of the settings, on the generator's device."""

    @abstractmethod
    def timesteps(self, levels: Tensor) -> Tensor:
        """The timesteps that the model is given for these levels."""

    @abstractmethod
    def shares(self, levels: Tensor) -> Tensor:
        """Where on the path the levels lie: 0 is clean, 1 pure noise; of a floating dtype."""

    @abstractmethod
    def levels_at(self, shares: Tensor) -> Tensor:
        """The levels that lie there: the inverse of `shares`, or the nearest cleaner level there is."""

    @abstractmethod
    def limited(self, levels: Tensor, limit: int) -> Tensor:
        """The levels, evenly squeezed into those below timestep `limit` of `num_timesteps`."""

    # --- training -------------------------------------------------------------------------------------

    def noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> NoisedTokens:
        """x_l of x_0 and ε, and what is to be predicted of it."""
        return NoisedTokens(
            clean, noise, levels, self.add_noise(clean, noise, levels), self.target(clean, noise, levels)
        )

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """x_l = α x_0 + σ ε."""
        return self.signal(levels, clean) * clean + self.noise_scale(levels, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The prediction of a perfect model that knew x_0 and ε."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        if self.prediction_type == "v_prediction":
            return self.signal(levels, clean) * noise - self.noise_scale(levels, clean) * clean
        if self.prediction_type == "score":
            return -noise / self.noise_scale(levels, clean).clamp(min=_LEAST_NOISE)
        return self.velocity(clean, noise, levels)

    @abstractmethod
    def velocity(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """dx/dl, towards the noise."""

    def errors(self, prediction: Tensor, tokens: NoisedTokens) -> Tensor:
        """Squared error of each predicted number, in the shape of the tokens, float32 whatever precision
        the model ran in; not yet weighted."""
        return (prediction.float() - tokens.target.float()).square()

    def weight(self, levels: Tensor) -> Tensor:
        """The weight of an error at each level, in the shape of `levels`, float32."""
        return self._weight(levels, torch.ones(levels.shape, device=levels.device))

    def _weight(self, levels: Tensor, like: Tensor) -> Tensor:
        """The same in the dtype of `like`, which is 1 at each of the levels."""
        config = self.config
        if config.loss_weight == "none" and config.error_in in ("prediction", self.prediction_type):
            return like
        levels = self.within(levels)
        # The same error of x_0 is `of_prediction` times smaller or larger in what is predicted.
        _, of_prediction = self.clean_factors(self.prediction_type, levels, like)
        if config.loss_weight == "min_snr":
            return self.snr(levels, like).clamp(max=config.snr_limit) * of_prediction.square()
        if config.loss_weight == "likelihood":
            _, of_noise = self.clean_factors("epsilon", levels, like)
            bound = self.snr_rate(levels, like)
            return bound * (of_prediction / of_noise).square()
        measured = self.prediction_type if config.error_in == "prediction" else config.error_in
        _, of_measured = self.clean_factors(measured, levels, like)
        return (of_prediction / of_measured).square() * self.density(levels, like)

    def snr(self, levels: Tensor, like: Tensor) -> Tensor:
        """The signal-to-noise ratio α² / σ²."""
        return (self.signal(levels, like) / self.noise_scale(levels, like)).square()

    def snr_rate(self, levels: Tensor, like: Tensor) -> Tensor:
        """How fast ln(σ / α) grows with the level."""
        raise ValueError("a chain of discrete levels has no rates; DiffusionConfig refuses the weight")

    def within(self, levels: Tensor) -> Tensor:
        """The levels, away from the ends by so much that nothing is divided by zero."""
        return levels

    def density(self, levels: Tensor, like: Tensor) -> Tensor:
        """Weights of the literature that are functions of the level alone; 1 on paths that have none."""
        return like

    # --- generation -----------------------------------------------------------------------------------

    def to_clean(self, prediction: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """The x_0 that the prediction means, in the dtype of `noised`."""
        of_noised, of_prediction = self.clean_factors(self.prediction_type, levels, noised)
        # A bf16 prediction joins a float32 x_l in float32: the factors reach 1 / sqrt(ᾱ_T), about 157.
        return of_noised * noised + of_prediction * prediction.to(noised.dtype)

    def sampler(self, config: SampleConfig, num_steps: int) -> Sampler:
        """A fresh sampler for one AR step of `num_steps` diffusion steps. Raises UserError for settings that
        this path does not have."""
        config = self.settled(config)
        if config.sampler not in self.samplers:
            raise UserError(
                f"sample.sampler is {config.sampler}; expected auto, or one of {', '.join(self.samplers)}, "
                f"for a model of diffusion.path {self.config.path}"
            )
        return self._sampler(config, num_steps)

    def settled(self, config: SampleConfig) -> SampleConfig:
        """The settings with the sampler that `auto` stands for. Raises UserError where other settings do not
        go with it."""
        return replace(config, sampler=self.samplers[0]) if config.sampler == "auto" else config

    @abstractmethod
    def _sampler(self, config: SampleConfig, num_steps: int) -> Sampler:
        """`sampler` of settings that name one of `samplers`."""

    @abstractmethod
    def subdivided(self, sampler: Sampler, points: int) -> Tensor:
        """(steps * points,) the levels at which a sampler asks the model, and between each and the next
        cleaner one, or clean data, further ones evenly spread; cleanest first."""

    @abstractmethod
    def num_steps(self, config: SampleConfig) -> list[int]:
        """Diffusion steps: one number for all AR steps, or one for each. Raises UserError."""

    def guidance_range(self, config: SampleConfig) -> tuple[float, float]:
        """The shares of the path, low and high, between which guidance acts."""
        low, high = config.guidance_interval
        if high <= 1:
            return low, high
        return low / self.config.num_timesteps, high / self.config.num_timesteps  # given as timesteps

    @cached_property
    def numbers_per_prediction(self) -> int:
        """How many numbers the model gives for each number of a token: 2 where it predicts variances."""
        return 2 if self.config.variance == "learned_range" else 1


def make_process(config: DiffusionConfig) -> Process:
    """The process that the settings describe. Raises UserError."""
    return process_of(config.path)(config)


def process_of(path: str) -> type[Process]:
    """The class of a `DiffusionConfig.path`."""
    from causalfusion.diffusion.curved import QuarterCircle, VariancePreserving
    from causalfusion.diffusion.ddpm import DDPM
    from causalfusion.diffusion.flow import RectifiedFlow

    kinds = {"rectified_flow": RectifiedFlow, "gvp": QuarterCircle, "vp": VariancePreserving}
    return kinds.get(path, DDPM)
