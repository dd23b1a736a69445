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
from causalfusion.config import SampleConfig, WriteConfig

app = App(name="complete", result_action="return_value")


@app.default
def complete(
    prompt: list[str],
    /,
    *,
    model: Model = Path("shapes"),
    elements: int | None = None,
    candidates: int = 1,
    out: Path = Path("completion"),
    seed: Seed = 0,
    weights: Weights = "ema",
    precision: Precision = "float32",
    autoencoder: Autoencoder = "",
    device: Device = "auto",
    config: SamplingFiles = [],  # noqa: B006
    write: Annotated[WriteConfig, Settings] = WriteConfig(),  # noqa: B008
    settings: Annotated[SampleConfig, Settings] = SampleConfig(),  # noqa: B008
) -> int:
    """Go on with texts and images, as the model thinks they go on.

    Parameters
    ----------
    prompt
        Elements to go on from, in order: texts, and image files (what ends in .png, .jpg, ...).
    elements
        How many to generate, if there is room. Default: until the model ends.
    candidates
        Images drawn for each that follows a text: kept is the one for which the model finds it likeliest.
    out
        Folder for `completion-00.png`, ..., `story.png`, `story.json`.
    """
    from causalfusion.generate.complete_run import CompleteRequest, complete_to_folder

    request = CompleteRequest(
        prompt=prompt, model=model, num_elements=elements, candidates=candidates, out=out, seed=seed,
        weights=weights, precision=precision, device=device, autoencoder=autoencoder,
        write=write, settings=settings,
    )  # fmt: skip
    complete_to_folder(request)
    return 0
