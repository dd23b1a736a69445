"""A chart of quality against time, with the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalfusion.pictures.charts import axes_of, log_scale
from causalfusion.planner.sweep import Tried, in_time

_COLORS = ("#2f6db5", "#3aa76d", "#8a5fbf", "#c2504f")
_MARKS = "os^Dv"
_MARKS_OF_OTHERS = "*PXhd"
_COLOR_OF_OTHERS = "#d1495b"


def save_picture(out: Path, tried: Sequence[Tried], best: Sequence[Tried], budget: float) -> None:
    """Save a chart with one point for each setting, coloured by sampler and marked by number of AR steps;
    those of further models have marks of their own."""
    every = [trial for trial in tried if trial.frechet is not None]
    measured = [trial for trial in every if not trial.model]
    others = list(dict.fromkeys(trial.model for trial in every if trial.model))
    samplers = list(dict.fromkeys(trial.settings.sampler for trial in measured))
    ar_steps = sorted({trial.settings.num_ar_steps for trial in measured})
    with axes_of(out, 1, (9.0, 5.2)) as (axes,):
        for trial in measured:
            mark = _MARKS[ar_steps.index(trial.settings.num_ar_steps) % len(_MARKS)]
            color = _COLORS[samplers.index(trial.settings.sampler) % len(_COLORS)]
            alpha = 1.0 if trial in best else 0.35
            axes.plot(*_point(trial), mark, color=color, alpha=alpha, markersize=6)
        for trial in every:
            if trial.model:
                mark, alpha = _mark_of(others.index(trial.model)), 1.0 if trial in best else 0.35
                axes.plot(*_point(trial), mark, color=_COLOR_OF_OTHERS, alpha=alpha, markersize=9)
        axes.plot(*zip(*map(_point, best), strict=True), color="#444444", linewidth=1.2, zorder=0)
        for trial in best:
            s = trial.settings
            steps = sum(s.diffusion_steps) * (s.num_ar_steps if len(s.diffusion_steps) == 1 else 1)
            label = f"S = {s.num_ar_steps}" if trial.model else f"{steps} steps, w {s.guidance_scale:g}"
            axes.annotate(label, _point(trial), textcoords="offset points", xytext=(5, 5), fontsize=7)
        axes.axvline(budget * 1e3, color="#f07814", linestyle="--", linewidth=1.2)
        log_scale(axes, "x")
        log_scale(axes, "y")
        for name, color in zip(samplers, _COLORS, strict=False):
            axes.plot([], [], "o", color=color, label=name)
        for count, mark in zip(ar_steps, _MARKS, strict=False):
            axes.plot([], [], mark, color="#777777", label=f"S = {count}")
        for place, name in enumerate(others):
            axes.plot([], [], _mark_of(place), color=_COLOR_OF_OTHERS, markersize=9, label=name)
        axes.plot([], [], "--", color="#f07814", label=f"budget, {in_time(budget)}")
        axes.plot([], [], color="#444444", label="frontier")
        axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("milliseconds per image (log scale)")
        axes.set_ylabel("Fréchet distance (log scale), lower is better")


def _mark_of(place: int) -> str:
    """The mark of a further model."""
    return _MARKS_OF_OTHERS[place % len(_MARKS_OF_OTHERS)]


def _point(trial: Tried) -> tuple[float, float]:
    """(milliseconds per image, Fréchet distance)."""
    return trial.seconds_per_image * 1e3, trial.frechet or 0.0
