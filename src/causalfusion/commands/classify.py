from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App

from causalfusion.config.options import Settings
from causalfusion.generate.request import ClassifyRequest

app = App(name="classify", result_action="return_value")


@app.default
def classify(
    files: list[Path],
    /,
    *,
    request: Annotated[ClassifyRequest, Settings] = ClassifyRequest(),  # noqa: B008
) -> int:
    """Tell the classes of images, by a model that was fine-tuned with `finetune MODEL --task classify`.

    Parameters
    ----------
    files
        Image files, or folders: all images in them, sorted. They are cropped and scaled to the model's size.
    """
    from causalfusion.generate.classify_run import classify_images

    classify_images(files, request)
    return 0
