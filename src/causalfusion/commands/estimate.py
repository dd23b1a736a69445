from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.config.options import Recipes

app = App(name="estimate", result_action="return_value")


@app.default
def estimate(
    *settings: Annotated[str, Parameter(allow_leading_hyphen=True)],
    config: Recipes = (),
    gpu: str = "",
    gpus: int = 1,
    share: float | None = None,
    text_tokens: float | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Estimate the arithmetic, time and memory of a training run before it begins.

        causalfusion estimate --config imagenet512 --gpu h100 --gpus 8 --train.batch-size 1024

    If the run does not fit into memory, the exit code is 1 and the settings to change are printed. Neither
    the data nor the autoencoder are needed.

    Parameters
    ----------
    settings
        Settings that train takes, such as --train.batch-size 1024 (train --help-all).
    gpu
        a100, h100, h200, b200, l40s or rtx4090, by its data sheet. Default: this machine, measured.
    gpus
        Number of GPUs that train together.
    share
        Fraction of the device's peak FLOP/s that training is assumed to reach, such as 0.4.
    text_tokens
        Mean number of text tokens in a sequence, markers included, for runs with text.
    json
        Print JSON.
    """
    from causalfusion.estimate.command import run

    given = [*(f"--config={name}" for name in config), *settings]
    return run(given, gpu=gpu, gpus=gpus, share=share, text_tokens=text_tokens, as_json=json)
