"""From noise to clean tokens: what a sampler is, and the form that most of them have.

A sampler serves one AR step, without a model and without drawing anything. Whoever drives it starts from
standard normal noise, asks the model at every call, and hands over each (guided) prediction:

    sampler = process.sampler(config, num_steps)
    for index, timestep in enumerate(sampler.timesteps):
        noised = sampler.enter(index, noised, noise[index])
        noised = sampler.step(index, noised, model(noised, timestep), noise[index])
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

from torch import Tensor

_ROUNDING = 1e-6
"""By how much a share may be above the one that is asked for, and still be that one."""


class Sampler(Protocol):
    @property
    def timesteps(self) -> list[int] | list[float]:
        """The timestep that the model is told at each call, noisiest first."""
        ...

    @property
    def shares(self) -> list[float]:
        """Where on the path each call lies: 0 is clean, 1 pure noise."""
        ...

    @property
    def needs_noise(self) -> bool:
        """True if `step` uses noise at all."""
        ...

    def enter(self, index: int, noised: Tensor, noise: Tensor | None) -> Tensor:
        """The state in which the model is asked: the one before, or with noise added beforehand."""
        ...

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        """The state after call `index`, clean tokens after the last, in the dtype and shape of `noised`.

        `noise` is standard normal, shaped like `noised`; None where `needs_noise` is False.
        """
        ...

    @property
    def calls_per_step(self) -> int:
        """How many calls belong together: steps begin at multiples of it."""
        ...

    def from_call(self, first: int) -> Sampler:
        """A fresh sampler of the calls from `first` on, with which a step begins: it goes on from any tokens
        that are as noisy as its first share says."""
        ...


def starts(sampler: Sampler) -> list[float]:
    """Where on the path each step begins, noisiest first."""
    return sampler.shares[:: sampler.calls_per_step]


def begun_at(sampler: Sampler, share: float) -> Sampler | None:
    """The sampler of those steps that begin at most as noisy as a share of the path; None without any."""
    first = next((step for step, start in enumerate(starts(sampler)) if start <= share + _ROUNDING), None)
    return None if first is None else sampler.from_call(first * sampler.calls_per_step)


class PlainEntry:
    """A sampler that asks the model in the state as it is, once in each step."""

    calls_per_step = 1

    def enter(self, index: int, noised: Tensor, noise: Tensor | None) -> Tensor:
        return noised


@dataclass(frozen=True)
class LinearSampler(PlainEntry):
    """Next state = of_clean x_0 + of_noised x + of_noise ε with the x_0 that the prediction means; factors by
    step, noisiest first, worked out in float64. The order of operations is the reference's, so that its
    recorded trajectories are met to the last bits even where predictions are replayed, and rounding is not
    corrected by a model."""

    timesteps: list[int] | list[float]
    shares: list[float]
    clean_of_noised: list[float]
    clean_of_prediction: list[float]
    """x_0 = clean_of_noised x + clean_of_prediction prediction."""
    of_clean: list[float]
    of_noised: list[float]
    of_noise: list[float]

    @property
    def needs_noise(self) -> bool:
        return any(self.of_noise)

    def from_call(self, first: int) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[first:] for field in fields(self)})

    def step(self, index: int, noised: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        mean = self.mean(index, noised, prediction)
        if self.of_noise[index] == 0:
            return mean
        return mean + self.of_noise[index] * given(noise, index)

    def mean(self, index: int, noised: Tensor, prediction: Tensor) -> Tensor:
        """The next state without its noise."""
        # Behind the prediction may stand variances, which only DDPM uses.
        prediction = prediction[..., : noised.shape[-1]].to(noised.dtype)
        clean = self.clean_of_noised[index] * noised + self.clean_of_prediction[index] * prediction
        return self.of_clean[index] * clean + self.of_noised[index] * noised


def given(noise: Tensor | None, index: int) -> Tensor:
    """The noise of a step that needs some."""
    if noise is None:
        raise ValueError(f"noise is None at step {index}; expected a tensor, as needs_noise is True")
    return noise
