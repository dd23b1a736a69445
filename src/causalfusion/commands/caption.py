from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App

from causalfusion.config.options import SamplingFiles, Settings
from causalfusion.generate.request import CaptionRequest

app = App(name="caption", result_action="return_value")


@app.default
def caption(
    files: list[Path],
    /,
    *,
    request: Annotated[CaptionRequest, Settings] = CaptionRequest(),  # noqa: B008
    config: SamplingFiles = (),
) -> int:
    """Describe images in words.

    Caption i depends on its image, the seed and i alone, not on the batch size.

    Parameters
    ----------
    files
        Image files, or folders: all images in them, sorted. They are cropped and scaled to the model's size.
    """
    from causalfusion.generate.caption_run import caption_images

    caption_images(files, request)
    return 0
