"""Options that several commands have, each with its meaning, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Model = Annotated[
    Path,
    Parameter(help="A model folder, a training run (its last checkpoint), or the name of a packaged model."),
]
Weights = Annotated[
    Literal["ema", "raw"],
    Parameter(help="ema: the average of the weights over training; raw: those of the last step."),
]
Autoencoder = Annotated[
    str,
    Parameter(
        help="Where the model's autoencoder lies now, if neither in its folder nor where it was in training: "
        "a diffusers folder, a hub id, or an original checkpoint."
    ),
]
BatchSize = Annotated[int, Parameter(help="Images generated together.")]
Precision = Annotated[Literal["float32", "bfloat16"], Parameter(help="Number format of the computation.")]
Device = Annotated[str, Parameter(help="auto (a GPU where there is one), cpu, cuda, cuda:N, mps or xpu.")]
Seed = Annotated[int, Parameter(help="The same seed gives the same result.")]
Paths = Annotated[
    list[str],
    Parameter(help="The data, as --data.path: a folder of images, shards, a .jsonl or an .npz file."),
]
Recipes = Annotated[
    list[str],
    Parameter(
        consume_multiple=False,
        help="A recipe's name or a TOML file, of which this command takes the tables that it uses. May be "
        "given several times, the last on top; other options come on top of all.",
    ),
]
SamplingFiles = Annotated[
    list[str],
    Parameter(
        consume_multiple=False,
        help="A recipe's name or a TOML file: its [sample] table, and any of these options. May be given "
        "several times, the last on top; other options come on top of all.",
    ),
]
Settings = Parameter(name="*", consume_multiple=True)
"""Of a configuration whose fields are options themselves."""
