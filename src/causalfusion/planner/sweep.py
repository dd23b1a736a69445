"""The settings that the planner tries, the frontier of quality against time, and the choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from causalfusion.config import ModelConfig, SampleConfig, SamplerChoice, SamplerName
from causalfusion.errors import UserError, check

Measure = Literal["frechet", "accuracy"]
"""What a setting is judged by: the Fréchet distance, or the share of images that are what was asked for."""

_OF_GUIDANCE = ("guidance_schedule", "guidance_interval", "guidance_power", "guided_channels")
"""What `sample` refuses where there is no guidance."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The values to try, in every combination."""

    samplers: Sequence[SamplerChoice] = ()
    """Samplers to try. Default: ddim and dpm++, or euler and dpm++ for flows."""
    diffusion_steps: Sequence[int] = (4, 8, 16, 32, 64)
    """Numbers of diffusion steps to try, each the total over all AR steps; for a per-token head, which alone
    runs in them, those in each AR step."""
    ar_steps: Sequence[int] = (1, 2, 4)
    """Numbers of AR steps to try; for a head that asks by the token before, there is but one for each
    token."""
    guidance_scales: Sequence[float] = (1.0, 2.0)
    """Guidance scales to try."""

    def __post_init__(self) -> None:
        for name in ("diffusion_steps", "ar_steps", "guidance_scales"):
            if not getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')} has no value; expected one or more")

    def settings_of_other(self, own: SampleConfig, model: ModelConfig, num_tokens: int) -> list[SampleConfig]:
        """A further model's own settings with every number of AR steps that images of `num_tokens` have.
        Diffusion steps that it has for each of its AR steps are divided evenly among another number."""
        counts = (num_tokens,) if model.head.ask == "previous" else self.ar_steps
        own_count = len(own.sizes) or own.num_ar_steps or num_tokens
        found = []
        for count in (count for count in counts if count <= num_tokens):
            changed = replace(own, num_ar_steps=count, sizes=own.sizes if count == own_count else [])
            total = sum(own.diffusion_steps)
            if len(own.diffusion_steps) == 1 or count == own_count:
                found.append(changed)
            elif total >= count:
                found.append(replace(changed, diffusion_steps=divided(total, count)))
        return found

    def settings(
        self, base: SampleConfig, model: ModelConfig, num_tokens: int = 0, path: str = "ddpm"
    ) -> list[SampleConfig]:
        """Every combination that is possible with this model, as changes of `base`, for images of
        `num_tokens`, by default those of its own grid. The diffusion steps are divided evenly among the AR
        steps, at least one in each; a per-token head has all in each."""
        found, ar_steps, num_tokens = [], self.ar_steps, num_tokens or model.num_tokens
        if model.head.ask == "previous":
            ar_steps, base = (num_tokens,), base.changed(order="raster")
        combinations = product(
            self.samplers or samplers_of(path)[:2], self.diffusion_steps, ar_steps, self.guidance_scales
        )
        for sampler, steps, num_ar_steps, scale in combinations:
            if num_ar_steps <= num_tokens and (model.per_token or steps >= num_ar_steps):
                counts = divided(steps, 1 if model.per_token else num_ar_steps)
                changed = base.with_sampler(sampler).changed(
                    num_ar_steps=num_ar_steps, diffusion_steps=counts, guidance_scale=scale
                )
                found.append(changed)
        return found


def samplers_of(path: str) -> tuple[SamplerName, ...]:
    """The deterministic samplers of a diffusion path, in the order in which they are tried."""
    return ("ddim", "dpm++", "unipc") if path == "ddpm" else ("euler", "dpm++", "unipc", "heun")


def divided(steps: int, num_ar_steps: int) -> list[int]:
    """Diffusion steps of each AR step, the larger first; one number where all are equal."""
    counts = [steps // num_ar_steps + (k < steps % num_ar_steps) for k in range(num_ar_steps)]
    return counts if len(set(counts)) > 1 else counts[:1]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting with its time and quality. The quality is None if it was too slow to be measured."""

    settings: SampleConfig
    seconds_per_image: float
    model: str = ""
    """A further model, as it was given; empty: the one that is planned for."""
    frechet: float | None = None
    accuracy: float | None = None
    """Share of images that are of their class, or show what their caption says; None where nothing can
    tell."""
    confirmed: float | None = None
    """The measure again, with other prompts and other noise than the choice was made with."""
    confirmed_by: Measure | None = None
    """What `confirmed` measures."""

    def worse(self, by: Measure) -> float:
        """What is smaller for better images. Raises ValueError where it was not measured."""
        value = self.frechet if by == "frechet" else self.accuracy
        if value is None:
            raise ValueError(f"{by} was not measured")
        return value if by == "frechet" else -value

    def __post_init__(self) -> None:
        check(self.seconds_per_image > 0, "seconds_per_image", self.seconds_per_image, "a positive number")
        in_range = self.accuracy is None or 0 <= self.accuracy <= 1
        check(in_range, "accuracy", self.accuracy, "a share in [0, 1]")

    def confirmed_as(self, by: Measure) -> float | None:
        """The confirmed value of a measure; None where it was not confirmed, or another was."""
        return self.confirmed if self.confirmed_by == by else None

    def again(self, by: Measure) -> str:
        """The confirmed measure in words."""
        value = self.confirmed_as(by) or 0.0
        return f"Fréchet distance {value:.4g}" if by == "frechet" else f"{-value:.1%} as asked"

    def in_words(self) -> str:
        s = self.settings
        steps = ", ".join(map(str, s.diffusion_steps)) + " diffusion step" + "s" * (s.diffusion_steps != [1])
        each = " in each" if s.num_ar_steps > 1 and len(s.diffusion_steps) == 1 else ""
        words = [s.sampler, f"S = {s.num_ar_steps}", steps + each, f"guidance {s.guidance_scale:g}"]
        model = f"{self.model}: " if self.model else ""
        return model + ", ".join([*words, *(f"{name} {value}" for name, value in self._rarer())])

    def as_options(self, own: SampleConfig) -> str:
        """The options with which `sample` draws so, for a model that recommends its `own` settings: what they
        are measured with differs from those, too. It refuses those that change nothing, which are left
        out."""
        values, told = vars(self.settings), ["num_ar_steps"]
        if not self.model:
            told = ["sampler", "num_ar_steps", "diffusion_steps", "guidance_scale"]
        beneath = own.changed(**{name: values[name] for name in told if name != "sampler"})
        others = [name for name, value in values.items() if value not in (getattr(beneath, name), [])]
        names = dict.fromkeys((*told, *others))
        if self.settings.guidance_scale == 1:
            names = {name: None for name in names if name not in _OF_GUIDANCE}
        return " ".join(f"--{name.replace('_', '-')} {_as_option(values[name])}" for name in names)

    def _rarer(self) -> list[tuple[str, str]]:
        """(name, value) of the settings that only a refinement varies, where they are not the default."""
        s, plain = self.settings, SampleConfig()
        low, high = s.guidance_interval
        values = {
            "solver order": (s.solver_order != plain.solver_order, f"{s.solver_order}"),
            "guidance interval": (s.guidance_interval != plain.guidance_interval, f"{low:g} {high:g}"),
            "step sizes": (s.step_sizes != plain.step_sizes, s.step_sizes),
            "level shift": (s.level_shift != plain.level_shift, f"{s.level_shift:.4g}"),
        }
        return [(name, value) for name, (differs, value) in values.items() if differs]


def _as_option(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_as_option, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def frontier(tried: Iterable[Tried], by: Measure = "frechet") -> list[Tried]:
    """The settings to which no faster, or equally fast, one is superior, fastest first."""
    best: list[Tried] = []
    measured = [trial for trial in tried if trial.frechet is not None]
    for trial in sorted(measured, key=lambda t: (t.seconds_per_image, t.worse(by))):
        if not best or trial.worse(by) < best[-1].worse(by):
            best.append(trial)
    return best


def choose(tried: Iterable[Tried], budget: float, by: Measure = "frechet") -> Tried:
    """The best setting within `budget` seconds per image. Raises UserError if all are slower."""
    tried = list(tried)
    within = [trial for trial in frontier(tried, by) if trial.seconds_per_image <= budget]
    if within:
        return within[-1]
    fastest = min(trial.seconds_per_image for trial in tried)
    raise UserError(
        f"--budget is {in_time(budget)}; the quickest of the {len(tried)} settings takes {in_time(fastest)} "
        "an image here: allow more, fewer --diffusion-steps, a larger --batch-size or another device"
    )


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def read_time(text: str) -> float:
    """Seconds that a text such as "200ms", "0.5s" or "2min" means. Raises UserError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s|min)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--budget is {text!r}; expected a time for each image, such as 200ms, 0.5s or 2min")
    return float(match[1]) * _UNITS[match[2]]


def in_time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
