from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from cyclopts import App

from causalfusion.config.options import Recipes, Settings
from causalfusion.study.request import StudyRequest

app = App(name="study", result_action="return_value")


@app.default
def study(
    studies: list[str],
    /,
    *,
    request: Annotated[StudyRequest, Settings] = StudyRequest(),  # noqa: B008
    config: Recipes = (),
) -> int:
    """Train and evaluate a grid of settings with several seeds.

    Tables and a picture compare the results with the paper's. The same command resumes after an interruption.

    Parameters
    ----------
    studies
        ar-steps, decay, order, ar-weight, timesteps, class-tokens, conditioning (the paper's), noise,
        systems, efficient, several of them, or a TOML file of the same form. Runs that several studies need
        are trained once.
    """
    from causalfusion.study.recipe import load_study_data
    from causalfusion.study.run import run_studies

    study_data = load_study_data(request.data, list(config))
    if request.features:
        study_data = replace(study_data, features=request.features)
    run_studies(studies, study_data, request)
    return 0
