"""The settings that the planner tries, and what it finds: quality against time, the frontier, the choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from causalfusion.config import SampleConfig, SamplerName
from causalfusion.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every combination is tried."""

    samplers: Sequence[SamplerName] = ("ddim", "dpm++")
    """Samplers to try."""
    diffusion_steps: Sequence[int] = (4, 8, 16, 32, 64)
    """Numbers of diffusion steps to try, of all AR steps together."""
    ar_steps: Sequence[int] = (1, 2, 4)
    """Numbers of AR steps to try."""
    guidance_scales: Sequence[float] = (1.0, 2.0)
    """Guidance scales to try."""

    def __post_init__(self) -> None:
        for flag, values in (
            ("--samplers", self.samplers), ("--diffusion-steps", self.diffusion_steps),
            ("--ar-steps", self.ar_steps), ("--guidance-scales", self.guidance_scales),
        ):  # fmt: skip
            if not values:
                raise UserError(f"{flag} has no value; expected one or more")

    def settings(self, base: SampleConfig, num_tokens: int) -> list[SampleConfig]:
        """`diffusion_steps` are those of all AR steps together, shared evenly; at least one in each."""
        found = []
        combinations = product(self.samplers, self.diffusion_steps, self.ar_steps, self.guidance_scales)
        for sampler, steps, num_ar_steps, scale in combinations:
            if num_ar_steps <= num_tokens and steps >= num_ar_steps:
                each = [steps // num_ar_steps + (k < steps % num_ar_steps) for k in range(num_ar_steps)]
                found.append(
                    replace(
                        base, sampler=sampler, num_ar_steps=num_ar_steps, guidance_scale=scale,
                        diffusion_steps=each if len(set(each)) > 1 else each[:1],
                    )
                )  # fmt: skip
        return found


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting. Its quality is None where it takes so long that it was not measured."""

    settings: SampleConfig
    seconds_per_image: float
    frechet: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        check(self.seconds_per_image > 0, "seconds_per_image", self.seconds_per_image, "a positive number")
        check(
            self.accuracy is None or 0 <= self.accuracy <= 1, "accuracy", self.accuracy, "a share in [0, 1]"
        )

    def in_words(self) -> str:
        s = self.settings
        steps = ", ".join(map(str, s.diffusion_steps)) + " diffusion steps"
        each = " in each" if s.num_ar_steps > 1 and len(s.diffusion_steps) == 1 else ""
        return f"{s.sampler}, S = {s.num_ar_steps}, {steps}{each}, guidance {s.guidance_scale:g}"

    def as_options(self) -> str:
        s = self.settings
        steps = " ".join(map(str, s.diffusion_steps))
        return (
            f"--sampler {s.sampler} --num-ar-steps {s.num_ar_steps} --diffusion-steps {steps} "
            f"--guidance-scale {s.guidance_scale:g}"
        )


def frontier(tried: Iterable[Tried]) -> list[Tried]:
    """Those that nothing quicker, or as quick, is better than; from the quickest on."""
    best: list[Tried] = []
    measured = [one for one in tried if one.frechet is not None]
    for one in sorted(measured, key=lambda t: (t.seconds_per_image, t.frechet)):
        if not best or (one.frechet or 0.0) < (best[-1].frechet or 0.0):
            best.append(one)
    return best


def choose(tried: Iterable[Tried], budget: float) -> Tried:
    """The best within `budget` seconds an image. Raises UserError where nothing is as quick."""
    tried = list(tried)
    within = [one for one in frontier(tried) if one.seconds_per_image <= budget]
    if within:
        return within[-1]
    quickest = min(one.seconds_per_image for one in tried)
    raise UserError(
        f"--budget is {in_time(budget)}; the quickest of the {len(tried)} settings takes {in_time(quickest)} "
        "an image here: allow more, fewer --diffusion-steps, a larger --batch-size or another device"
    )


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def read_time(text: str) -> float:
    """Seconds of "200ms", "0.5s", "2min"."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s|min)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--budget is {text!r}; expected a time for each image, such as 200ms, 0.5s or 2min")
    return float(match[1]) * _UNITS[match[2]]


def in_time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
