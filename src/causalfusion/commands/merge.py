from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="merge", result_action="return_value")


@app.default
def merge(
    models: list[Path],
    /,
    *,
    shares: Annotated[Sequence[float], Parameter(consume_multiple=True)] = (),
    out: Path,
) -> int:
    """Merge models that went on from the same beginning into one.

        causalfusion merge shapes runs/captions --shares 0.5 0.5 --out models/merged

    Each weight is the sum of theirs, times the shares: a model and what it was fine-tuned to, or several runs
    from the same weights (2109.01903, 2203.05482). Everything else is as in the first model.

    Parameters
    ----------
    models
        Model folders, training runs (their last checkpoints), or names of packaged models, two or more.
    shares
        A number for each model, which sum to 1. Default: the same for all. For a model that went on from the
        first, 0.5 is half of the way, 1.5 one and a half times.
    out
        Folder for the model.
    """
    from causalfusion.saved.merged import merge as merge_models

    merged = merge_models(models, list(shares), out)
    for model, distance in zip(models[1:], merged.distances, strict=True):
        print(f"{model}: its weights are {distance:.1%} of their size away from those of {models[0]}")
    print(f"{merged.folder}: causalfusion sample --model {shlex.quote(str(merged.folder))}")
    return 0
