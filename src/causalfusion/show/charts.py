"""Charts of a training run, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from causalfusion.errors import UserError
from causalfusion.pictures.charts import LINE, axes_of, log_scale
from causalfusion.train.log import read_log

_FAINT, _POINT = "#b9cfe8", "#f07814"


def save_loss_curve(log_path: Path, out: Path) -> None:
    """Save a chart of the training loss in a `log.jsonl`, with the loss on held-out images if it was
    measured. Raises UserError for a log without training records."""
    records = read_log(log_path)
    training = [(r["images_seen"], r["loss"]) for r in records if r["kind"] == "train"]
    held_out = [(r["images_seen"], r["mean"]) for r in records if r["kind"] == "evaluation" and r["mean"]]
    if not training:
        raise UserError(f"{log_path} has no training record; expected the log.jsonl of a run")
    seen, loss = np.array(training, dtype=np.float64).T
    with axes_of(out, 1, (7.5, 4.0)) as (axes,):
        axes.plot(seen, loss, color=_FAINT, linewidth=1, label="training, as logged")
        axes.plot(seen, _smoothed(loss), color=LINE, linewidth=2, label="training, smoothed")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color=_POINT, markersize=4, label="held-out images")
        log_scale(axes)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title("The loss over the run")
        axes.set_xlabel("images seen in training")
        has_text = any("text_loss" in r for r in records)
        axes.set_ylabel("loss (log scale)" if has_text else "mean squared error (log scale)")
        axes.legend(frameon=False)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving average over about a twentieth of the run, over less near the ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
