"""The generation loop: condition -> context -> AR step -> diffusion steps -> append.

Shape letters: B images, n tokens of an AR step, P token dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.process import Process
from causalfusion.diffusion.samplers import Sampler, begun_at, starts
from causalfusion.errors import UserError
from causalfusion.generate.ar_step import AutoregressiveStep, make_step
from causalfusion.generate.context import Context
from causalfusion.generate.guidance import Guidance, guidance_of_steps
from causalfusion.generate.noise import NoiseSource
from causalfusion.generate.settings import check_order, diffusion_steps
from causalfusion.model.transformer import Transformer


@dataclass(frozen=True)
class StepEvent:
    """The result of a diffusion step, for progress and pictures."""

    ar_step: int
    num_ar_steps: int
    diffusion_step: int
    num_diffusion_steps: int
    timestep: float
    """The timestep that the model was given."""
    positions: Tensor
    """(B, n) raster indices of the tokens in work."""
    tokens: Tensor
    """(B, n, P) after the step."""


Watcher = Callable[[StepEvent], None]


@dataclass(frozen=True)
class Sketch:
    """Tokens that are not drawn from pure noise, but from what they show already (SDEdit, 2108.01073)."""

    tokens: Tensor
    """(B, n, P) clean, in the order of drawing."""
    strength: float
    """Share of the path to which they are noised at most, above 0: 1 is pure noise."""

    def begin(
        self, process: Process, sampler: Sampler, clean: Tensor, noise: Tensor
    ) -> tuple[Sampler, Tensor]:
        """(the steps of the sampler that are left, `clean` (B, n, P) noised to where they begin). Raises
        UserError if none is left."""
        left = begun_at(sampler, self.strength)
        if left is None:
            raise UserError(
                f"the strength is {self.strength:g}; expected at least {starts(sampler)[-1]:.3g}, where the "
                "last of these diffusion steps begins, or more steps (sample.diffusion_steps)"
            )
        levels = process.levels_at(torch.tensor(left.shares[0], device=clean.device))
        return left, process.add_noise(clean, noise, levels.expand(len(clean), 1))


@dataclass(frozen=True)
class Drawing:
    """How the tokens of images are drawn, AR step after AR step: all that is decided before the first."""

    model: Transformer
    process: Process
    config: SampleConfig
    order: Tensor
    """(B, n) raster positions in the order of drawing."""
    sizes: list[int]
    noise: NoiseSource
    steps: list[int]
    """Diffusion steps of each AR step."""
    guidances: list[Guidance]
    sketch: Sketch | None = None

    @classmethod
    def of(
        cls,
        model: Transformer,
        process: Process,
        config: SampleConfig,
        order: Tensor,
        sizes: list[int],
        noise: NoiseSource,
        guided_numbers: Tensor | None = None,
        sketch: Sketch | None = None,
    ) -> Drawing:
        """Raises UserError for settings that the model does not have."""
        check_order(model.config, config, sizes)
        steps = diffusion_steps(config, len(sizes), process)
        guidances = guidance_of_steps(config, sizes, process, guided_numbers)
        return cls(model, process, config, order, sizes, noise, steps, guidances, sketch)

    def begin(self, context: Context, index: int) -> AutoregressiveStep:
        """AR step `index`, counted from 0, against the context of those before."""
        to_come = self.order[:, sum(self.sizes[:index]) :]
        return make_step(self.model, context, to_come, self.sizes[index], self.guidances[index])

    def denoise(self, step: AutoregressiveStep, index: int, watch: Watcher | None = None) -> Tensor:
        """(B, n, P): the tokens of an AR step, from noise to clean."""
        sampler, total = self.process.sampler(self.config, self.steps[index]), len(self.sizes)
        tokens = self.noise.initial(index, step.positions)
        if self.sketch is not None:
            first = sum(self.sizes[:index])
            sketched = self.sketch.tokens[:, first : first + self.sizes[index]]
            sampler, tokens = self.sketch.begin(self.process, sampler, sketched, tokens)

        def report(k: int, tokens: Tensor) -> None:
            if watch is not None:
                count, timestep = len(sampler.timesteps), sampler.timesteps[k]
                watch(StepEvent(index + 1, total, k + 1, count, timestep, step.positions, tokens))

        return step.denoise(sampler, tokens, self.noise, index, report)


@torch.no_grad()
def generate_tokens(
    model: Transformer,
    process: Process,
    config: SampleConfig,
    context: Context,
    order: Tensor,
    sizes: list[int],
    noise: NoiseSource,
    watch: Watcher | None = None,
    guided_numbers: Tensor | None = None,
    sketch: Sketch | None = None,
) -> Tensor:
    """Tokens (B, n, P) at the raster positions `order` (B, n), in `len(sizes)` AR steps. Guidance acts on
    all numbers of a token, or on `guided_numbers` (P,) bool. They begin from noise, or from a sketch.

    Every finished AR step but the last is appended to the context, once, in the first pass of the next.
    """
    drawing = Drawing.of(model, process, config, order, sizes, noise, guided_numbers, sketch)
    finished = []
    for index in range(len(sizes)):
        step = drawing.begin(context, index)
        tokens = drawing.denoise(step, index, watch)
        finished.append(tokens)
        if index + 1 < len(sizes):
            context = step.finish(tokens)
    return torch.cat(finished, dim=1)
