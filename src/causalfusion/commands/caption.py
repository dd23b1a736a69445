from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.config import WriteConfig

app = App(name="caption", result_action="return_value")


@app.default
def caption(
    images: list[Path],
    /,
    *,
    model: Path = Path("shapes"),
    out: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    weights: Literal["ema", "raw"] = "ema",
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    config: Annotated[list[str], Parameter(consume_multiple=False)] = [],  # noqa: B006
    write: Annotated[WriteConfig, Parameter(name="*")] = WriteConfig(),  # noqa: B008
) -> int:
    """Say what images show. Caption i depends on its image, the seed and i alone: not on the batch size.

    Parameters
    ----------
    images
        Image files, or folders: all images in them, sorted. They are cropped and scaled to the model's size.
    model
        A model folder, a training run (its last checkpoint), or the name of a packaged model.
    out
        A .jsonl file to write as well: `image` and `caption` on each line.
    batch_size
        Images captioned together.
    seed
        Of the choice of words, where the text temperature is above 0.
    config
        A TOML file with these settings; the command line comes on top.
    """
    from causalfusion.generate.caption_run import CaptionRequest, caption_images

    request = CaptionRequest(
        images=images, model=model, out=out, batch_size=batch_size, seed=seed, weights=weights,
        precision=precision, device=device, write=write,
    )  # fmt: skip
    caption_images(request)
    return 0
