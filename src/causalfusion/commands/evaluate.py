from __future__ import annotations

from typing import Annotated

from cyclopts import App

from causalfusion.config.options import SamplingFiles, Settings
from causalfusion.evaluate.request import EvaluateRequest

app = App(name="evaluate", result_action="return_value")


@app.default
def evaluate(
    *,
    request: Annotated[EvaluateRequest, Settings] = EvaluateRequest(),  # noqa: B008
    config: SamplingFiles = (),
) -> int:
    """Evaluate a model, or images: metrics, and a card with all settings that they depend on.

    Samples are kept in OUT/samples: the same command resumes after an interruption, and a larger --images
    adds to them. Image i depends on the seed and i alone, so any number of processes (`torchrun`) can share
    the work. `causalfusion compare` shows cards side by side.

    Sampling settings that are not given are as the preset or, without one, the model's sample.toml says; the
    defaults below are for the rest.

    Names of metrics include N: fid_50k, is_50k, ... in Inception's features, frechet_pixels8_10k in others.
    """
    from causalfusion.evaluate.cards.terminal import show_card
    from causalfusion.evaluate.run import evaluate as run_evaluation

    card = run_evaluation(request)
    if card is not None:
        show_card(card, request.out)
    return 0
