"""Charts drawn with matplotlib, without its global state: the frame of all of them, and where the loss is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = "#2f6db5"


@contextmanager
def axes_of(out: Path, columns: int, size: tuple[float, float]) -> Iterator[list[Axes]]:
    """Axes side by side in a figure of `size` inches, saved to `out` on exit, without matplotlib's global
    state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    for plot in axes:
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(axis="y", color="#e6e9ee")
        plot.set_axisbelow(True)
    yield axes
    canvas.print_png(str(out))


def save_loss_map(record: Mapping[str, Any], out: Path) -> None:
    """Save a chart of an evaluation record's loss by AR progress and by noise level (paper, figure 4)."""
    progress: dict[str, float] = record["by_progress"]
    by_timestep: list[float] = record["by_timestep"]
    count = len(by_timestep)
    ranges = [f"{100 * k // count}-{100 * (k + 1) // count}" for k in range(count)]
    with axes_of(out, 2, (10.5, 4.0)) as (left, right):
        _bars(left, list(progress), list(progress.values()))
        left.set_title("By AR progress")
        left.set_xlabel("fraction of the image that is finished")
        left.set_ylabel("mean squared error, held-out images")
        _bars(right, ranges, by_timestep)
        right.set_title("By noise level")
        right.set_xlabel("timestep t in % (0: clean, 100: pure noise)")
        right.tick_params(axis="x", labelrotation=35)


def _bars(axes: Axes, names: list[str], values: list[float]) -> None:
    """Draw one bar per name; NaN, a bucket without tokens, has none. The scale is logarithmic if the values
    differ by more than a factor of 30."""
    known = [v for v in values if np.isfinite(v) and v > 0]
    if known and max(known) > 30 * min(known):
        log_scale(axes)
        axes.set_title("log scale", loc="right", fontsize=8)
    bars = axes.bar(names, np.nan_to_num(values), color=LINE, width=0.72)
    axes.bar_label(bars, [f"{v:.2g}" if np.isfinite(v) else "–" for v in values], fontsize=8, padding=2)
    axes.margins(y=0.12)


def log_scale(axes: Axes, along: Literal["x", "y"] = "y") -> None:
    """Make the scale logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten, as losses span
    few decades; within one decade, at every tick."""
    axis = axes.xaxis if along == "x" else axes.yaxis

    def label(value: float, _: object) -> str:
        low, high = axis.get_view_interval()
        mantissa = round(value / 10 ** np.floor(np.log10(value)))
        return f"{value:g}" if high < 10 * low or mantissa in (1, 2, 5) else ""

    (axes.set_xscale if along == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(label)
    axis.set_minor_formatter(label)
