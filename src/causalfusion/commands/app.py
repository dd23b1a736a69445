from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App

from causalfusion.app.request import AppRequest
from causalfusion.config.options import Settings

app = App(name="app", result_action="return_value")


@app.default
def serve_page(*, request: Annotated[AppRequest, Settings] = AppRequest()) -> int:  # noqa: B008
    """Play with a model in the browser: draw, change a part, describe, quality against time.

    `causalfusion app`, or `causalfusion app RUN`, prints the address of a page that this machine alone can
    reach, and serves it until Ctrl-C.
    """
    from causalfusion.machine.progress import tell

    tell("starting; the page's address follows")  # importing Gradio takes seconds
    from causalfusion.saved.folder import latest_model

    latest_model(Path(request.model))  # what is not there is told before
    from causalfusion.app.serve import serve

    serve(request)
    return 0
