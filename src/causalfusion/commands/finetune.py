from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from causalfusion.config import (
    ClassifyConfig,
    DataConfig,
    FactorizationConfig,
    FinetuneConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from causalfusion.config.finetuning import TaskName
from causalfusion.config.options import Device, Recipes, Settings
from causalfusion.errors import UserError

app = App(name="finetune", result_action="return_value")


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """The options of the command: what a run does not simply have from the model that it goes on from."""

    model: Annotated[str, Parameter(name="--model")] = ""
    """The model to go on from: a model folder, a training run (its last checkpoint), the name of a packaged
    model, or a name on the hub."""
    task: TaskName = "generate"
    """generate: images like those of the data; classify: to tell their classes (`causalfusion classify`);
    caption: to describe them (`causalfusion caption`)."""
    finetune: Annotated[FinetuneConfig, Settings] = field(default_factory=FinetuneConfig)
    classify: Annotated[ClassifyConfig, Settings] = field(default_factory=ClassifyConfig)
    out: str = "runs/finetune"
    """Folder of the new run, which is a model."""
    data: DataConfig = field(default_factory=DataConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Settings of the sample grids during training."""


@dataclass(frozen=True)
class Task:
    """One way to fine-tune; a new one is an entry of TASKS, and its name in `config.finetuning.TaskName`."""

    beneath: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    """From a model, and options that are given, to the tables of settings that lie beneath these."""
    run: Callable[[FinetuneRequest, str], None]
    """Does it, for a request and a device."""


@app.default
def finetune(
    *,
    request: Annotated[FinetuneRequest, Settings] = FinetuneRequest(),
    config: Recipes = (),
    device: Device = "auto",
) -> int:
    """Go on from a model with data of your own: other classes, captions, or another resolution.

    `causalfusion finetune shapes --data photos --out models/mine`: settings that are not given follow from
    the model. With --task, it learns to classify or to describe images instead of drawing them. The same
    command resumes; Ctrl-C, SIGTERM and SIGHUP save and exit with code 3.
    """
    TASKS[request.task].run(request, device)
    return 0


def settings_beneath(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run's task, which `given` options name, has from a model. Raises UserError for a
    task that there is not."""
    name = given.get("task", FinetuneRequest.task)
    if name not in TASKS:
        raise UserError(f"--task is {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name].beneath(model, given)


def _beneath_generate(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from causalfusion.train.finetuning import settings_beneath

    return settings_beneath(model, given)


def _beneath(task: TaskName) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    def beneath(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
        from causalfusion.train.finetuning import beneath_task

        all_weights = {"adapter": "none"}  # which these tasks train
        return {**all_weights, **beneath_task(task, model, {**all_weights, **given})}

    return beneath


def _train(request: FinetuneRequest, device: str) -> None:
    from causalfusion.train.finetuning import continued, report
    from causalfusion.train.run import train

    run = RunConfig(
        out=request.out,
        data=request.data,
        factorization=request.factorization,
        text=request.text,
        train=replace(request.train, init=request.model),
        finetune=replace(request.finetune, task=request.task),
        classify=request.classify,
        sample=request.sample,
    )
    report(run, train(continued(run), device=device))


def _caption(request: FinetuneRequest, device: str) -> None:
    from causalfusion.evaluate.captioning import score_run

    _train(request, device)
    score_run(Path(request.out), request.data, device, images=request.finetune.caption_images)


TASKS: dict[TaskName, Task] = {
    "generate": Task(_beneath_generate, _train),
    "classify": Task(_beneath("classify"), _train),
    "caption": Task(_beneath("caption"), _caption),
}
