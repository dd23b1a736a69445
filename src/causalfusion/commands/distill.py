from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import App

from causalfusion.config import (
    DataConfig,
    DistillConfig,
    FactorizationConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
)
from causalfusion.config.options import Device, Recipes, Settings

app = App(name="distill", result_action="return_value")


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """The options of the command: what a student does not simply have from its teacher."""

    out: str = RunConfig().out
    """Folder of the student: a training run, and a model."""
    distill: Annotated[DistillConfig, Settings] = field(default_factory=DistillConfig)
    data: DataConfig = field(default_factory=DataConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@app.default
def distill(
    *,
    request: Annotated[DistillRequest, Settings] = DistillRequest(),
    config: Recipes = (),
    device: Device = "auto",
) -> int:
    """Distil a model into one that takes 1 to 4 diffusion steps in each AR step, without guidance.

    `causalfusion distill RUN --steps 1 --out models/fast`: data, batch size and learning rate that are not
    given are those with which the run was trained. The same command resumes; Ctrl-C, SIGTERM and SIGHUP save
    and exit with code 3.
    """
    from causalfusion.train.run import train
    from causalfusion.train.teacher import student_of

    run = RunConfig(
        out=request.out,
        distill=request.distill,
        data=request.data,
        factorization=request.factorization,
        text=request.text,
        train=request.train,
    )
    train(student_of(run), device=device)
    return 0
