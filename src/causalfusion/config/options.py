"""Options that several commands share, with their help texts, and a check of numbers."""

# Without `from __future__ import annotations`: cyclopts reads the fields of a request in the module of its
# class, where the names of inherited annotations are unknown if they are kept as text.

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from causalfusion.errors import UserError

DEFAULT_MODEL = Path("shapes")
"""The packaged model, used if no other is given."""

Model = Annotated[
    Path,
    Parameter(
        help="A model folder, a training run (its last checkpoint), the name of a packaged model, or a name "
        "on the hub: user/model, user/model@revision."
    ),
]
Weights = Annotated[
    Literal["ema", "raw"],
    Parameter(help="ema: the average of the weights over training; raw: those of the last step."),
]
Autoencoder = Annotated[
    str,
    Parameter(
        help="The model's autoencoder, if it is neither in the model's folder nor at the path recorded in "
        "training: a diffusers folder, a hub id, or an original checkpoint."
    ),
]
Precision = Annotated[Literal["float32", "bfloat16"], Parameter(help="Number format of the computation.")]
QuantizeChoice = Literal["none", "int8"]
Quantize = Annotated[
    QuantizeChoice,
    Parameter(
        help="int8: the blocks' weights as whole numbers with a scale for each row, which take a quarter of "
        "the memory; needs torchao (docs/export.md)."
    ),
]
Device = Annotated[str, Parameter(help="auto (a GPU if there is one), cpu, cuda, cuda:N, mps or xpu.")]
Adapters = Annotated[
    Sequence[str],
    Parameter(
        help="Adapters of the model, from causalfusion finetune, whose additions are added: folders, "
        "runs, or names on the hub (user/heart, user/heart@revision)."
    ),
]
AdapterWeights = Annotated[
    Sequence[float], Parameter(help="A factor for the additions of each adapter. Default: 1 for all.")
]
Seed = Annotated[int, Parameter(help="The same seed gives the same result.")]
Paths = Annotated[
    Sequence[str],
    Parameter(help="The data, as --data.path: a folder of images, shards, a .jsonl, .npz or parquet file."),
]
Recipes = Annotated[
    Sequence[str],
    Parameter(
        consume_multiple=False,
        help="A recipe's name or a TOML file, of which this command uses the tables that concern it. May be "
        "given several times: later ones override earlier ones, and other options override all.",
    ),
]
SamplingFiles = Annotated[
    Sequence[str],
    Parameter(
        consume_multiple=False,
        help="A recipe's name or a TOML file with a table [sample] or any of these options. May be given "
        "several times: later ones override earlier ones, and other options override all.",
    ),
]
Settings = Parameter(name="*", consume_multiple=True)
"""Marks a dataclass parameter, whose fields become options of the command, with their docstrings as help."""

_COMPUTATION = Parameter(group=Group("Computation", sort_key=1))


@dataclass(frozen=True, kw_only=True)
class ComputationOptions:
    """The options of all commands that compute with a model; help shows them after a command's own."""

    precision: Annotated[Precision, _COMPUTATION] = "float32"
    autoencoder: Annotated[Autoencoder, _COMPUTATION] = ""
    device: Annotated[Device, _COMPUTATION] = "auto"


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(ComputationOptions):
    """The same for those that draw random numbers."""

    seed: Annotated[Seed, _COMPUTATION] = 0


@dataclass(frozen=True, kw_only=True)
class GeneratingOptions(DrawingOptions):
    """The same for those that take either of a model's weights."""

    weights: Annotated[Weights, _COMPUTATION] = "ema"
    quantize: Annotated[Quantize, _COMPUTATION] = "none"
    adapters: Annotated[Adapters, _COMPUTATION] = ()
    adapter_weights: Annotated[AdapterWeights, _COMPUTATION] = ()

    def weighted_adapters(self) -> dict[str | Path, float]:
        """The adapters with their weights, 1 where none are given. Raises UserError for another number."""
        places, weights = list(self.adapters), list(self.adapter_weights)
        if weights and len(weights) != len(places):
            raise UserError(
                f"--adapters has {len(places)} adapters, --adapter-weights {len(weights)} numbers; expected "
                "a number for each, or none"
            )
        if len(set(places)) < len(places):
            raise UserError(f"--adapters is {places}; expected each once, with the weight that it is to have")
        require_finite("--adapter-weights", weights)
        return dict(zip(places, weights or [1.0] * len(places), strict=True))


def option_name(field: str) -> str:
    """The option that sets a field of a request: --batch-size for batch_size."""
    return "--" + field.replace("_", "-")


def require_finite(option: str, numbers: Sequence[float]) -> None:
    """Raise UserError for a number that is infinite or none."""
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{option} is {list(numbers)}; expected finite numbers")


def require_at_least(least: int, request: object, *fields: str) -> None:
    """Raise UserError for the first of these fields that is below `least`; None, not given, is allowed."""
    expected = f"at least {least}" if least else "0 or more"
    for field in fields:
        value = getattr(request, field)
        if value is not None and value < least:
            raise UserError(f"{option_name(field)} is {value}; expected {expected}")
