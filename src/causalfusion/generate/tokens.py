"""The generation loop: condition -> context -> AR step -> diffusion steps -> append (PAPER section 5).

Shape letters: B images, n tokens of an AR step, P token dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.process import Process
from causalfusion.diffusion.samplers import Sampler
from causalfusion.generate.ar_step import make_step
from causalfusion.generate.context import Context
from causalfusion.generate.guidance import guidance_of_steps
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
    check_order(model.config, config, sizes)
    steps = diffusion_steps(config, len(sizes), process)
    guidances = guidance_of_steps(config, sizes, process, guided_numbers)
    finished, start = [], 0
    for index, size in enumerate(sizes):
        sampler = process.sampler(config, steps[index])
        step = make_step(model, context, order[:, start:], size, guidances[index])
        positions = step.positions

        def report(k: int, tokens: Tensor, *, s: int = index, by: Sampler = sampler, at: Tensor = positions):
            if watch is not None:
                count = len(by.timesteps)
                watch(StepEvent(s + 1, len(sizes), k + 1, count, by.timesteps[k], at, tokens))

        tokens = step.denoise(sampler, noise, index, report)
        finished.append(tokens)
        start += size
        if index + 1 < len(sizes):
            context = step.finish(tokens)
    return torch.cat(finished, dim=1)
