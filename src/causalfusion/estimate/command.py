"""The command `estimate`: prints the cost of a run from recipes and options."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_facts
from causalfusion.errors import UserError
from causalfusion.estimate.cost import estimate
from causalfusion.estimate.devices import SHEETS, Device, faster_in_bfloat16, named_device, this_device
from causalfusion.estimate.planned import plan_run, read_settings
from causalfusion.estimate.show import describe, to_json
from causalfusion.machine.runtime import select_device


def run(
    settings: Sequence[str],
    *,
    gpu: str = "",
    gpus: int = 1,
    share: float | None = None,
    text_tokens: float | None = None,
    as_json: bool = False,
) -> int:
    """Print the cost. Returns the exit code, 1 if the run does not fit. Raises UserError."""
    if share is not None and not 0 < share <= 1:
        raise UserError(f"share is {share}; expected a number in (0, 1]")
    if gpus < 1:
        raise UserError(f"gpus is {gpus}; expected at least 1")
    if text_tokens is not None and not 0 <= text_tokens < math.inf:
        raise UserError(f"text-tokens is {text_tokens}; expected 0 or more")
    recipes, overrides = split_settings(settings)
    planned = plan_run(read_settings(recipes, overrides), text_tokens, load_facts(recipes))
    planned = replace(planned, config=_settled(planned.config, on_gpu=bool(gpu)))
    precision = planned.config.train.precision
    device = named_device(gpu, precision, share) if gpu else _here(precision, gpus, share)
    cost = estimate(planned.config, device, gpus, text_tokens=planned.text_tokens)
    if as_json:
        print(json.dumps(to_json(cost) | {"assumptions": planned.assumptions}, indent=1))
    else:
        for name, value in describe(cost, planned.config, planned.assumptions):
            print(f"{name:<13} {value}")
    return 0 if cost.fits else 1


def _settled(config: RunConfig, *, on_gpu: bool) -> RunConfig:
    """With the precision that `auto` stands for on a named GPU, or on this machine."""
    if config.train.precision != "auto":
        return config
    low = on_gpu or faster_in_bfloat16(select_device("auto"))
    return replace(config, train=replace(config.train, precision="bfloat16" if low else "float32"))


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """(recipes: those that come first, and every `--config`; options, which override them). Raises UserError
    if there is no recipe."""
    recipes, overrides, tokens = [], [], list(settings)
    while tokens and not tokens[0].startswith("-"):
        recipes.append(tokens.pop(0))
    while tokens:
        token = tokens.pop(0)
        if token.startswith("--config="):
            recipes.append(token.removeprefix("--config="))
        elif token == "--config" and tokens:
            recipes.append(tokens.pop(0))
        else:
            overrides.append(token)
    if not recipes:
        raise UserError(
            "no recipe is given; expected one, such as: causalfusion estimate --config imagenet256 --gpu h100"
        )
    return recipes, overrides


def _here(precision: str, gpus: int, share: float | None) -> Device:
    """This machine's device. Raises UserError for several GPUs on a machine without any."""
    device = select_device("auto")
    if gpus > 1 and device.type == "cpu":
        raise UserError(f"gpus is {gpus}, and this machine has none; name one: --gpu {', '.join(SHEETS)}")
    return this_device(device, precision, share)
