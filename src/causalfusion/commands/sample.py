from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.commands.common import (
    Autoencoder,
    BatchSize,
    Device,
    Model,
    Precision,
    SamplingFiles,
    Seed,
    Settings,
    Weights,
)
from causalfusion.config import SampleConfig

Output = Literal["png", "grid", "npz"]
app = App(name="sample", result_action="return_value")


@app.default
def sample(
    prompts: list[str] = [],  # noqa: B006
    /,
    *,
    model: Model = Path("shapes"),
    out: Path = Path("samples"),
    images: int | None = None,
    prompt: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    prompts_file: Path | None = None,
    candidates: int = 1,
    classes: Annotated[list[str], Parameter(consume_multiple=True)] = [],  # noqa: B006
    first: int = 0,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    weights: Weights = "ema",
    output: Annotated[list[Output], Parameter(consume_multiple=True)] = ["png", "grid"],  # noqa: B006
    precision: Precision = "float32",
    compile: Literal["auto", "always", "never"] = "auto",
    autoencoder: Autoencoder = "",
    device: Device = "auto",
    config: SamplingFiles = [],  # noqa: B006
    settings: Annotated[SampleConfig, Settings] = SampleConfig(),  # noqa: B008
) -> int:
    """Generate images, of classes or of prompts.

    Image i depends on the seed and i alone, however many images and processes (`torchrun`) share the work.

    Parameters
    ----------
    prompts
        The same as --prompt.
    out
        Folder for the images, `grid.png`, `samples.npz` and `settings.json`. Those of an earlier `sample`
        there are replaced, other files left alone; where the same command was stopped, it goes on.
    images
        How many images. Default: one for each line of the prompts file, else 16.
    prompt
        What the images are to show, in words; image i gets prompt[i % how many].
    prompts_file
        UTF-8 file with a prompt on each line, instead.
    candidates
        Images drawn for each that is kept: the one for which the model itself finds the prompt likeliest.
    classes
        Names, or numbers counted from 0; name:7 and index:7 say which is meant. Image i gets classes[i % how
        many]. Default: all in turn; with prompts, none.
    first
        Index of the first image: --first N goes on with an earlier set of N images of the same settings.
    output
        png: one file per image; grid: all in one picture; npz: ADM's format (arr_0 images, arr_1 labels).
    compile
        The model's blocks, by torch.compile: a minute to begin, faster from then on. auto: on GPUs, for 1,000
        images or more.
    """
    from causalfusion.generate.run import Request, sample_to_folder

    request = Request(
        model=model, out=out, num=images, classes=classes, prompts=prompt,
        prompts_file=prompts_file, candidates=candidates, first=first, batch_size=batch_size, seed=seed,
        weights=weights, output=output, precision=precision, compile=compile, device=device,
        autoencoder=autoencoder, settings=settings,
    )  # fmt: skip
    sample_to_folder(request)
    return 0
