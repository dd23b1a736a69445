"""Quality against time, the frontier marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalfusion.planner.sweep import Tried, in_time
from causalfusion.show.charts import axes_of

_COLORS = ("#2f6db5", "#3aa76d", "#8a5fbf", "#c2504f")
_MARKS = "os^Dv"


def save_picture(out: Path, tried: Sequence[Tried], best: Sequence[Tried], budget: float) -> None:
    """One point for each setting: its colour is the sampler, its mark the number of AR steps."""
    measured = [one for one in tried if one.frechet is not None]
    samplers = list(dict.fromkeys(one.settings.sampler for one in measured))
    ar_steps = sorted({one.settings.num_ar_steps for one in measured})
    with axes_of(out, 1, (9.0, 5.2)) as (axes,):
        for one in measured:
            axes.plot(
                one.seconds_per_image * 1e3, one.frechet or 0.0, alpha=1.0 if one in best else 0.35,
                marker=_MARKS[ar_steps.index(one.settings.num_ar_steps) % len(_MARKS)], markersize=6,
                color=_COLORS[samplers.index(one.settings.sampler) % len(_COLORS)], linestyle="none",
            )  # fmt: skip
        places = [(one.seconds_per_image * 1e3, one.frechet or 0.0) for one in best]
        axes.plot(*zip(*places, strict=True), color="#444444", linewidth=1.2, zorder=0)
        for one, place in zip(best, places, strict=True):
            s = one.settings
            steps = sum(s.diffusion_steps) * (s.num_ar_steps if len(s.diffusion_steps) == 1 else 1)
            axes.annotate(
                f"{steps} steps, w {s.guidance_scale:g}",
                place, textcoords="offset points", xytext=(5, 5), fontsize=7,
            )  # fmt: skip
        axes.axvline(budget * 1e3, color="#f07814", linestyle="--", linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for name, color in zip(samplers, _COLORS, strict=False):
            axes.plot([], [], "o", color=color, label=name)
        for count, mark in zip(ar_steps, _MARKS, strict=False):
            axes.plot([], [], mark, color="#777777", label=f"S = {count}")
        axes.plot([], [], "--", color="#f07814", label=f"budget, {in_time(budget)}")
        axes.plot([], [], color="#444444", label="frontier")
        axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("milliseconds for each image (log scale)")
        axes.set_ylabel("Fréchet distance (log scale), lower is better")
