from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

FAR, COARSE = 0.05, 0.003
"""Distance of a profile, and rounding of weights, beyond which the average is not the one asked for."""

app = App(name="ema", result_action="return_value")


@app.default
def ema(
    run: Path, /, *, width: Annotated[Sequence[float], Parameter(consume_multiple=True)], out: Path
) -> int:
    """Choose the width of a model's weight average after training.

        causalfusion ema runs/XL --width 0.03 0.06 0.1 --out models/XL

    Any width is reconstructed from the snapshots that a run with --train.ema-widths takes (2312.02696,
    section 3).

    Parameters
    ----------
    run
        Folder of the run.
    width
        Standard deviation of the average's weights over time, relative to the length of the training. With
        several, a folder for each.
    out
        Folder for the model; for several widths, of folders named by them.
    """
    from causalfusion.train.reconstruct import reconstruct

    for made in reconstruct(run, list(width), out):
        print(
            f"{made.folder}: average of width {made.width:g} at {made.images_seen:,} images, from "
            f"{made.num_snapshots} snapshots; its profile is off by {made.distance:.2%}, its weights by "
            f"{made.rounding:.2%} of rounding"
        )
        if made.distance > FAR or made.rounding > COARSE:
            print("note: that is much; a width nearer to those of train.ema_widths comes out closer")
    return 0
