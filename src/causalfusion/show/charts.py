"""Charts of a training run, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causalfusion.errors import UserError
from causalfusion.train.log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE, _FAINT, _POINT = "#2f6db5", "#b9cfe8", "#f07814"


def save_loss_curve(log_path: Path, out: Path) -> None:
    """Save a chart of the training loss in a `log.jsonl`, with the loss on held-out images if it was
    measured. Raises UserError for a log without training records."""
    records = read_log(log_path)
    training = [(r["images_seen"], r["loss"]) for r in records if r["kind"] == "train"]
    held_out = [(r["images_seen"], r["mean"]) for r in records if r["kind"] == "evaluation"]
    if not training:
        raise UserError(f"{log_path} has no training record; expected the log.jsonl of a run")
    seen, loss = np.array(training, dtype=np.float64).T
    with axes_of(out, 1, (7.5, 4.0)) as (axes,):
        axes.plot(seen, loss, color=_FAINT, linewidth=1, label="training, as logged")
        axes.plot(seen, _smoothed(loss), color=_LINE, linewidth=2, label="training, smoothed")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color=_POINT, markersize=4, label="held-out images")
        _log_scale(axes)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title("The loss over the run")
        axes.set_xlabel("images seen in training")
        axes.set_ylabel("mean squared error (log scale)")
        axes.legend(frameon=False)


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
        _log_scale(axes)
        axes.set_title("log scale", loc="right", fontsize=8)
    bars = axes.bar(names, np.nan_to_num(values), color=_LINE, width=0.72)
    axes.bar_label(bars, [f"{v:.2g}" if np.isfinite(v) else "–" for v in values], fontsize=8, padding=2)
    axes.margins(y=0.12)


def _log_scale(axes: Axes) -> None:
    """Make the scale logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten, as losses span
    few decades."""

    def label(value: float, _: object) -> str:
        mantissa = round(value / 10 ** np.floor(np.log10(value)))
        return f"{value:g}" if mantissa in (1, 2, 5) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(label)
    axes.yaxis.set_minor_formatter(label)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving average over about a twentieth of the run, over less near the ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


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
