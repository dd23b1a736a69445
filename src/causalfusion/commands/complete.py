from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.config import SampleConfig, WriteConfig

app = App(name="complete", result_action="return_value")


@app.default
def complete(
    prompt: list[str],
    /,
    *,
    model: Path = Path("shapes"),
    elements: int | None = None,
    candidates: int = 1,
    out: Path = Path("completion"),
    seed: int = 0,
    weights: Literal["ema", "raw"] = "ema",
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    config: Annotated[list[str], Parameter(consume_multiple=False)] = [],  # noqa: B006
    write: Annotated[WriteConfig, Parameter(name="*")] = WriteConfig(),  # noqa: B008
    settings: Annotated[SampleConfig, Parameter(name="*", consume_multiple=True)] = SampleConfig(),  # noqa: B008
) -> int:
    """Go on with texts and images: what the model takes to come next, until it ends or for N elements.

    Parameters
    ----------
    prompt
        Elements to go on from, in order: texts, and image files (what ends in .png, .jpg, ...).
    model
        A model folder, a training run (its last checkpoint), or the name of a packaged model.
    elements
        How many to generate, if there is room. Default: until the model ends.
    candidates
        Images drawn for each that follows a text: kept is the one for which the model finds it likeliest.
    out
        Folder for `completion-00.png`, ..., `story.png`, `story.json`.
    config
        A TOML file with these settings; the command line comes on top.
    """
    from causalfusion.generate.complete_run import CompleteRequest, complete_to_folder

    request = CompleteRequest(
        prompt=prompt, model=model, num_elements=elements, candidates=candidates, out=out, seed=seed,
        weights=weights, precision=precision, device=device, write=write, settings=settings,
    )  # fmt: skip
    complete_to_folder(request)
    return 0
