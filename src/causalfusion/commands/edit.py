from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App

from causalfusion.config.options import SamplingFiles, Settings
from causalfusion.generate.request import EditRequest

app = App(name="edit", result_action="return_value")


@app.default
def edit(
    image: Path,
    /,
    *,
    request: Annotated[EditRequest | None, Settings] = None,
    config: SamplingFiles = (),
) -> int:
    """Regenerate a region of an image for a class or a prompt.

    Zero-shot: the rest of the image is clean context. Sampling settings that are not given are as the model's
    sample.toml says; the defaults below are for the rest.

    Parameters
    ----------
    image
        The image; it is cropped and scaled to the model's size.
    """
    from causalfusion.generate.edit_run import edit_to_folder

    edit_to_folder(image, request or EditRequest())  # which says what options are missing
    return 0
