from __future__ import annotations

from typing import Annotated

from cyclopts import App

from causalfusion.config import RunConfig
from causalfusion.config.options import Device, Paths, Recipes, Settings

app = App(name="train", result_action="return_value")


@app.default
def train(
    paths: Paths = (),
    /,
    *,
    config: Recipes = (),
    run: Annotated[RunConfig, Settings] = RunConfig(),  # noqa: B008
    device: Device = "auto",
) -> int:
    """Train a model, or resume a run that was stopped.

    The same command resumes a run. Under `torchrun` all processes train together (--train.parallel: DDP or
    FSDP). Ctrl-C, SIGTERM and SIGHUP save and exit with code 3.

    Unless a recipe says how long to train, what is not given is chosen for the data and the machine, and
    printed; the defaults below are those beneath recipes.
    """
    from causalfusion.train.run import train as train_run

    train_run(run, device=device)
    return 0
