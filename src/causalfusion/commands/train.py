from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.config import RunConfig

app = App(name="train", result_action="return_value")


@app.default
def train(
    *,
    config: Annotated[list[str], Parameter(consume_multiple=False)] = [],  # noqa: B006
    run: Annotated[RunConfig, Parameter(name="*", consume_multiple=True)] = RunConfig(),  # noqa: B008
    device: str = "auto",
) -> int:
    """Train a model, or go on with a run that was stopped: the same command resumes it.

    Under `torchrun` all processes train together (--train.parallel: DDP or FSDP). Ctrl-C, SIGTERM and
    SIGHUP save and exit with code 3.

    Parameters
    ----------
    config
        A recipe's name or a TOML file; may be given several times, the last on top. The other options
        come on top of all.
    device
        auto, cpu, cuda or cuda:N.
    """
    from causalfusion.train.run import train as train_run

    train_run(run, device=device)
    return 0
