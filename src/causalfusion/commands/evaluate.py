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
    """Measure a model, or images: figures, and a card with all that they depend on.

    Samples are kept in OUT/samples: the same command goes on where it was interrupted, with a larger --images
    it adds to them. Image i depends on the seed and i alone; any number of processes (`torchrun`) share the
    work. `causalfusion compare` sets cards side by side.

    The names of figures carry N: in Inception's features fid_50k, is_50k, ...; in others frechet_pixels8_10k.
    """
    from causalfusion.evaluate.cards.terminal import show_card
    from causalfusion.evaluate.run import evaluate as run_evaluation

    card = run_evaluation(request)
    if card is not None:
        show_card(card, request.out)
    return 0
