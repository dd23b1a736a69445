from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App

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
from causalfusion.config import WriteConfig

app = App(name="caption", result_action="return_value")


@app.default
def caption(
    files: list[Path],
    /,
    *,
    model: Model = Path("shapes"),
    out: Path | None = None,
    batch_size: int = 64,
    seed: Seed = 0,
    weights: Weights = "ema",
    precision: Precision = "float32",
    autoencoder: Autoencoder = "",
    device: Device = "auto",
    config: SamplingFiles = [],  # noqa: B006
    write: Annotated[WriteConfig, Settings] = WriteConfig(),  # noqa: B008
) -> int:
    """Say what images show.

    Caption i depends on its image, the seed and i alone: not on the batch size.

    Parameters
    ----------
    files
        Image files, or folders: all images in them, sorted. They are cropped and scaled to the model's size.
    out
        A .jsonl file to write as well: `image` and `caption` on each line.
    batch_size
        Images captioned together.
    """
    from causalfusion.generate.caption_run import CaptionRequest, caption_images

    request = CaptionRequest(
        images=files, model=model, out=out, batch_size=batch_size, seed=seed, weights=weights,
        precision=precision, device=device, autoencoder=autoencoder, write=write,
    )  # fmt: skip
    caption_images(request)
    return 0
