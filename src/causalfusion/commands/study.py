from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.commands.common import Device, Recipes

app = App(name="study", result_action="return_value")


@app.default
def study(
    studies: list[str],
    /,
    *,
    data: str = "digits",
    features: str = "",
    seeds: Annotated[list[int], Parameter(consume_multiple=True)] = [0, 1, 2],  # noqa: B006
    out: Path = Path("runs/study"),
    workers: int = 1,
    device: Device = "auto",
    config: Recipes = [],  # noqa: B006
) -> int:
    """Train and evaluate a grid of settings with several seeds.

    Tables and a picture stand beside the paper's figures. The same command goes on where it was interrupted.

    Parameters
    ----------
    studies
        ar-steps, decay, order, ar-weight, timesteps, class-tokens, conditioning, several of them, or a TOML
        file of the same form. Runs that several studies need are trained once.
    data
        digits, shapes or cifar10, or a TOML file: how to train there, and how to judge.
    features
        The feature space of the Fréchet distance, as for evaluate; by default the data file's.
    seeds
        Each setting is trained once with each; tables give the mean and the spread.
    out
        Folder of the runs and of the results.
    workers
        Runs that share the machine.
    """
    from causalfusion.study.recipe import load_ground, load_study
    from causalfusion.study.run import Request, run_study

    ground = load_ground(data, config)
    if features:
        ground = replace(ground, features=features)
    for name in studies:
        request = Request(
            name=Path(name).stem, study=load_study(name), ground_name=Path(data).stem, ground=ground,
            seeds=seeds, out=out / Path(data).stem, workers=workers, device=device,
        )  # fmt: skip
        run_study(request)
    return 0
