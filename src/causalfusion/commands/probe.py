from __future__ import annotations

from typing import Annotated

from cyclopts import App

from causalfusion.config.options import Recipes, Settings
from causalfusion.probe.request import ProbeRequest

app = App(name="probe", result_action="return_value")


@app.default
def probe(*, request: Annotated[ProbeRequest, Settings], config: Recipes = ()) -> int:
    """Measure what a model has learned: probes on the features of its layers, at noise levels.

    `causalfusion probe RUN --layers all --levels clean 0.2 0.5`: features are kept in OUT/features, and the
    same command resumes. The best layer and level are chosen on images that the probe is trained with.
    """
    from causalfusion.probe.figures import best_of
    from causalfusion.probe.run import probe as run_probe

    figures = run_probe(request)
    for kind in request.kind:
        print(f"best on validation images: {kind}, {best_of(figures, kind).in_words()}")
    print(f"{request.out / 'probe.md'}, {request.out / 'probe.png'}")
    return 0
