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
    ) -> Drawing:
        """Raises UserError for settings that the model does not have."""
        check_order(model.config, config, sizes)
        steps = diffusion_steps(config, len(sizes), process)
        guidances = guidance_of_steps(config, sizes, process, guided_numbers)
        return cls(model, process, config, order, sizes, noise, steps, guidances)

    def begin(self, context: Context, index: int) -> AutoregressiveStep:
        """AR step `index`, counted from 0, against the context of those before."""
        to_come = self.order[:, sum(self.sizes[:index]) :]
        return make_step(self.model, context, to_come, self.sizes[index], self.guidances[index])

    def denoise(self, step: AutoregressiveStep, index: int, watch: Watcher | None = None) -> Tensor:
        """(B, n, P): the tokens of an AR step, from noise to clean."""
        sampler, total = self.process.sampler(self.config, self.steps[index]), len(self.sizes)

        def report(k: int, tokens: Tensor) -> None:
            if watch is not None:
                count, timestep = len(sampler.timesteps), sampler.timesteps[k]
                watch(StepEvent(index + 1, total, k + 1, count, timestep, step.positions, tokens))

        return step.denoise(sampler, self.noise, index, report)


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
) -> Tensor:
    """Tokens (B, n, P) at the raster positions `order` (B, n), in `len(sizes)` AR steps. Guidance acts on
    all numbers of a token, or on `guided_numbers` (P,) bool.

    Every finished AR step but the last is appended to the context, once, in the first pass of the next.
    """
    drawing = Drawing.of(model, process, config, order, sizes, noise, guided_numbers)
    finished = []
    for index in range(len(sizes)):
        step = drawing.begin(context, index)
        tokens = drawing.denoise(step, index, watch)
        finished.append(tokens)
        if index + 1 < len(sizes):
            context = step.finish(tokens)
    return torch.cat(finished, dim=1)
