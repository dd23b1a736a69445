"""From a `SampleConfig` to the numbers of one run: step sizes and diffusion steps per AR step, classes."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import SupportsIndex

import torch

from causalfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.diffusion.process import Process, make_process
from causalfusion.errors import UserError
from causalfusion.factorization import (
    cosine_split,
    draw_order,
    even_split,
    masked_cosine_split,
    random_composition,
)
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
    parts = config.num_ar_steps or num_tokens
    if parts > num_tokens:
        raise UserError(
            f"sample.num_ar_steps is {parts}; expected at most {num_tokens}, the number of tokens to generate"
        )
    if config.step_sizes == "even":
        return even_split(num_tokens, parts)
    if config.step_sizes == "cosine":
        return cosine_split(num_tokens, parts)
    if config.step_sizes == "falling":
        return cosine_split(num_tokens, parts)[::-1]
    if config.step_sizes == "masked_cosine":
        return masked_cosine_split(num_tokens, parts)
    return random_composition(num_tokens, parts, derive_generator(seed, "step_sizes"))


def fit_ar_steps(config: SampleConfig, num_tokens: int) -> SampleConfig:
    """Settings for whole images with at most as many AR steps as there are tokens to generate: the first
    ones. Sizes of AR steps that are those of more tokens are left out."""
    if config.sizes and sum(config.sizes) != num_tokens:
        config = replace(config, sizes=[], num_ar_steps=len(config.sizes))
    if config.sizes or not 0 < num_tokens < config.num_ar_steps:
        return config
    return replace(config, num_ar_steps=num_tokens, diffusion_steps=config.diffusion_steps[:num_tokens])


def check_order(model: ModelConfig, config: SampleConfig, sizes: Sequence[int]) -> None:
    """Refuse what a head that asks by the token before cannot do: any but one token after another."""
    if model.head.ask == "mask":
        return
    if config.order != "raster" or config.given_order or any(size != 1 for size in sizes):
        raise UserError(
            f"this model's head asks by the token before; expected sample.order raster and "
            f"sample.num_ar_steps {sum(sizes)} instead of {config.order} and {len(sizes)}"
        )


def diffusion_steps(config: SampleConfig, num_ar_steps: int, process: Process) -> list[int]:
    """Denoising steps of every AR step."""
    steps = process.num_steps(config)
    if len(steps) not in (1, num_ar_steps):
        raise UserError(
            f"sample.diffusion_steps has {len(steps)} numbers; expected one, or one for each of the "
            f"{num_ar_steps} AR steps"
        )
    return steps * num_ar_steps if len(steps) == 1 else list(steps)


def check_settings(
    config: SampleConfig,
    model: ModelConfig,
    diffusion: DiffusionConfig,
    grid: tuple[int, int] | None = None,
) -> None:
    """Refuse, before any work is done, what generation with this model would refuse; `grid`: rows and columns
    of tokens, by default those of the model."""
    rows, columns = grid or (model.grid_height, model.grid_width)
    sizes = step_sizes(config, rows * columns, 0)
    check_order(model, config, sizes)
    process = make_process(diffusion)
    for steps in set(diffusion_steps(config, len(sizes), process)):
        process.sampler(config, steps)
    draw_order(config.order, rows, columns, config.block_size, derive_generator(0), config.given_order)
    warn_of_unused(config, diffusion)


def warn_of_unused(config: SampleConfig, diffusion: DiffusionConfig) -> None:
    """Warn of settings that neither the model's path nor the sampler uses. No error, as they may come from a
    file for several models; on the command line they are refused."""
    unused = {
        "last_step": config.sampler not in ("sde", "sde_heun") and "sampler sde or sde_heun",
        "level_shift": diffusion.path == "ddpm" and "a model with diffusion.path rectified_flow, gvp or vp",
    }
    plain = SampleConfig()
    for name, needed in unused.items():
        value = getattr(config, name)
        if needed and value != getattr(plain, name):
            warnings.warn(f"sample.{name} {value} changes nothing: it needs {needed}", stacklevel=3)


def parse_classes(values: Sequence[str], class_names: Sequence[str], num_classes: int) -> list[int]:
    """Labels of classes, one rule for the whole list.

    `name:cat` and `index:3` say which is meant. A value without them that is a name, exactly (as Unicode
    NFC), or else in other capitals, is that class; otherwise a number is an index. Where classes are named
    by numbers that are not their indices, a value that could be both is refused, and so is an index that is
    no name. A name that several classes have is refused.
    """
    names = [unicodedata.normalize("NFC", name) for name in class_names]
    numbers = [name for name in names if _as_number(name) is not None]
    # "7" beside "cat" and "dog" is no place in the list; "1".."12", and labels such as 207, are.
    renumbered = len(numbers) == len(names) > 0 and names != [str(k) for k in range(len(names))]
    return [
        _parse_class(unicodedata.normalize("NFC", value), names, num_classes, renumbered) for value in values
    ]


def parse_class(value: str, class_names: Sequence[str], num_classes: int) -> int:
    """`parse_classes` of one."""
    return parse_classes([value], class_names, num_classes)[0]


def _parse_class(value: str, names: Sequence[str], num_classes: int, renumbered: bool) -> int:
    kind, colon, rest = value.partition(":")
    if colon and kind == "index" and value not in names:
        number = _as_number(rest)
        if number is None:
            raise UserError(f"class {value!r} has no number; expected index:N, such as index:0")
        return check_label(number, num_classes)
    explicit = bool(colon) and kind == "name" and value not in names
    wanted = rest if explicit else value
    matching = [k for k, name in enumerate(names) if name == wanted]
    matching = matching or [k for k, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(matching) > 1:
        which = ", ".join(f"index:{k}" for k in matching[:4])
        raise UserError(f"class {wanted!r} is the name of {len(matching)} classes; say which: {which}")
    number = None if explicit else _as_number(wanted)
    if matching and number is not None and number != matching[0] and 0 <= number < num_classes:
        raise UserError(
            f"class {value!r} is the name of one class and the index of another ({names[number]!r}); "
            f"say name:{value} or index:{value}"
        )
    if matching:
        return matching[0]
    if number is not None and not renumbered:
        return check_label(number, num_classes)
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    hint = f"one of {known}" if names else ""
    if renumbered:
        raise UserError(
            f"class {value!r} is unknown; expected {hint}, or index:N with N from 0 to {num_classes - 1}"
        )
    hint += ", or " if hint else ""
    raise UserError(f"class {value!r} is unknown; expected {hint}a number from 0 to {num_classes - 1}")


def _as_number(text: str) -> int | None:
    """A whole number in plain digits."""
    plain = text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 19
    return int(text) if plain else None


def check_label(label: int, num_classes: int) -> int:
    if not isinstance(label, SupportsIndex):
        raise UserError(f"class {label!r} is no class; expected a number or a name")
    if not 0 <= int(label) < num_classes:
        raise UserError(f"class {label} is out of range; expected a number from 0 to {num_classes - 1}")
    return label


def timestep_tensor(timestep: float, rows: int, device: torch.device) -> torch.Tensor:
    """(rows, 1): every token of the AR step is at the same noise level."""
    dtype = torch.int64 if isinstance(timestep, int) else torch.float32
    return torch.full((rows, 1), timestep, dtype=dtype, device=device)
