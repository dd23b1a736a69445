"""From a `SampleConfig` to the numbers of one run: step sizes, diffusion steps, guidance per AR step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from causalfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.diffusion.samplers import make_sampler
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.errors import UserError
from causalfusion.factorization import cosine_split, draw_order, even_split, random_composition
from causalfusion.rng import derive_generator


def step_sizes(config: SampleConfig, num_tokens: int, seed: int) -> list[int]:
    """Tokens of every AR step. Random ones depend on the run's seed alone: they are equal for all images."""
    if config.sizes:
        if sum(config.sizes) != num_tokens:
            raise UserError(
                f"sample.sizes {config.sizes} add up to {sum(config.sizes)}; "
                f"expected {num_tokens}, the number of tokens to generate"
            )
        return list(config.sizes)
    parts = config.num_ar_steps
    if parts > num_tokens:
        raise UserError(
            f"sample.num_ar_steps is {parts}; expected at most {num_tokens}, the number of tokens to generate"
        )
    if config.step_sizes == "even":
        return even_split(num_tokens, parts)
    if config.step_sizes == "cosine":
        return cosine_split(num_tokens, parts)
    return random_composition(num_tokens, parts, derive_generator(seed, "step_sizes"))


def diffusion_steps(config: SampleConfig, num_ar_steps: int, num_timesteps: int) -> list[int]:
    """Denoising steps of every AR step."""
    steps = config.diffusion_steps
    if max(steps) > num_timesteps:
        raise UserError(
            f"sample.diffusion_steps is {max(steps)}; the model was trained with {num_timesteps} noise "
            "levels, which is the most there can be"
        )
    if len(steps) not in (1, num_ar_steps):
        raise UserError(
            f"sample.diffusion_steps has {len(steps)} numbers; expected one, or one for each of the "
            f"{num_ar_steps} AR steps"
        )
    return steps * num_ar_steps if len(steps) == 1 else list(steps)


def guidance_scales(config: SampleConfig, sizes: Sequence[int]) -> list[float]:
    """w of every AR step: from 1 towards the full scale with the share of tokens done when it ends."""
    scales, done, total = [], 0, sum(sizes)
    for size in sizes:
        done += size
        progress = done / total
        if config.guidance_schedule == "constant":
            progress = 1.0
        elif config.guidance_schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        scales.append(1 + (config.guidance_scale - 1) * progress)
    return scales


def check_settings(config: SampleConfig, model: ModelConfig, diffusion: DiffusionConfig) -> None:
    """Refuse, before any work is done, what generation with this model would refuse."""
    sizes = step_sizes(config, model.num_tokens, 0)
    schedule = NoiseSchedule.from_config(diffusion)
    for steps in set(diffusion_steps(config, len(sizes), diffusion.num_timesteps)):
        make_sampler(config, schedule, diffusion.prediction_type, steps)
    draw_order(
        config.order, model.grid_height, model.grid_width, config.block_size, derive_generator(0),
        config.given_order,
    )  # fmt: skip


def parse_class(name: str, class_names: Sequence[str], num_classes: int) -> int:
    """A class by number or by name."""
    if name in class_names:
        return list(class_names).index(name)
    lowered = [c.lower() for c in class_names]
    if name.lower() in lowered:
        return lowered.index(name.lower())
    try:
        label = int(name)
    except ValueError:
        known = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
        hint = f"one of {known}, or " if class_names else ""
        raise UserError(
            f"class {name!r} is unknown; expected {hint}a number from 0 to {num_classes - 1}"
        ) from None
    return check_label(label, num_classes)


def check_label(label: int, num_classes: int) -> int:
    if not 0 <= label < num_classes:
        raise UserError(f"class {label} is out of range; expected a number from 0 to {num_classes - 1}")
    return label


def timestep_tensor(timestep: int, rows: int, device: torch.device) -> torch.Tensor:
    """(rows, 1): every token of the AR step is at the same noise level."""
    return torch.full((rows, 1), timestep, dtype=torch.int64, device=device)
