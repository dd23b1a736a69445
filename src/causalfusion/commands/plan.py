from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import App

from causalfusion.config import SampleConfig
from causalfusion.config.options import SamplingFiles, Settings
from causalfusion.planner.request import PlanRequest
from causalfusion.planner.sweep import in_time

app = App(name="plan", result_action="return_value")


@app.default
def plan(*, request: Annotated[PlanRequest, Settings], config: SamplingFiles = ()) -> int:
    """Find the best sampling settings within a time budget.

    Tries samplers, diffusion steps, AR steps and guidance scales, with the model's own settings (sample.toml)
    for all else, then (--rounds) changes around the best, and draws quality against time per image. The same
    command resumes after an interruption.
    """
    from causalfusion.planner.run import plan as make_plan
    from causalfusion.saved.folder import latest_model
    from causalfusion.saved.sampling import read_sampling

    best = make_plan(request)
    quality, time = f"Fréchet distance {best.frechet:.4g}", in_time(best.seconds_per_image)
    if best.accuracy is not None:
        quality += f", {best.accuracy:.1%} as asked"
    if best.confirmed_as(request.by) is not None:
        quality += f" (other prompts and noise: {best.again(request.by)})"
    print(f"{request.out / 'plan.png'}, {request.out / 'plan.md'}")
    print(f"best within {request.budget}: {best.in_words()}: {quality}, {time} an image")
    size = f" --size {request.size}" if request.size else ""
    if request.save:
        print(f"{best.model or request.model}: its images are made so from now on")
    model = best.model or request.model
    own = read_sampling(latest_model(Path(model))) or SampleConfig()
    print(f"  causalfusion sample --model {shlex.quote(str(model))} {best.as_options(own)}{size}")
    return 0
