from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.commands.common import (
    Autoencoder,
    Device,
    Model,
    Precision,
    SamplingFiles,
    Seed,
    Settings,
    Weights,
)
from causalfusion.config import SampleConfig

app = App(name="edit", result_action="return_value")


@app.default
def edit(
    image: Path,
    /,
    *,
    model: Model = Path("shapes"),
    class_: Annotated[str | None, Parameter(name="--class")] = None,
    prompt: str | None = None,
    mask: Path | None = None,
    region: str = "",
    out: Path = Path("edit"),
    variants: int = 1,
    candidates: int = 1,
    paste: Annotated[bool, Parameter(negative="--no-paste")] = True,
    seed: Seed = 0,
    weights: Weights = "ema",
    precision: Precision = "float32",
    autoencoder: Autoencoder = "",
    device: Device = "auto",
    config: SamplingFiles = [],  # noqa: B006
    settings: Annotated[SampleConfig, Settings] = SampleConfig(),  # noqa: B008
) -> int:
    """Regenerate a region of an image under a class or a prompt.

    Zero-shot: the rest of the image is clean context.

    Parameters
    ----------
    image
        The image; it is cropped and scaled to the model's size.
    class_
        Class of the new content: a name, or a number counted from 0; name:7 and index:7 say which is meant.
    prompt
        What the whole image is to show, in words; with a class, or instead of one.
    mask
        Image of the picture's size, or the model's: bright pixels that are not transparent may change; in a
        mask of zeros and ones, the ones. A token is regenerated if any of its pixels may.
    region
        Instead of a mask: center, top, bottom, left, right, outside, or a box x,y,w,h in pixels.
    out
        Folder for `edited-00.png`, ..., `original.png`, `mask.png`, `sheet.png` and `settings.json`. Those of
        an earlier edit there are replaced, other files left alone.
    variants
        How many different edits; they share the cached context.
    candidates
        Edits drawn for each that is kept: the one for which the model itself finds the prompt likeliest.
    paste
        Put the pixels outside the mask back exactly as they were (--no-paste: leave the model's).
    """
    from causalfusion.generate.edit_run import EditRequest, edit_to_folder

    request = EditRequest(
        image=image, model=model, class_name=class_, prompt=prompt, mask=mask, region=region, out=out,
        variants=variants, candidates=candidates, paste=paste, seed=seed, weights=weights,
        precision=precision, device=device, autoencoder=autoencoder, settings=settings,
    )  # fmt: skip
    edit_to_folder(request)
    return 0
