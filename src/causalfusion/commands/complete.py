from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import App

from causalfusion.config.options import SamplingFiles, Settings
from causalfusion.generate.request import CompleteRequest

app = App(name="complete", result_action="return_value")


@app.default
def complete(
    prompt: Sequence[str] = (),
    /,
    *,
    request: Annotated[CompleteRequest, Settings] = CompleteRequest(),  # noqa: B008
    config: SamplingFiles = (),
) -> int:
    """Continue texts and images with new ones.

    Sampling settings that are not given are as the model's sample.toml says; the defaults below are for the
    rest.

    Parameters
    ----------
    prompt
        Elements to continue, in order: texts, and image files (names that end in .png, .jpg, ...); or
        --documents.
    """
    from causalfusion.generate.complete_run import complete_to_folder

    complete_to_folder(prompt, request)
    return 0
