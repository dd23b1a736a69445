"""A picture of a study's results: the paper's figures on the left, those measured here on the right."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalfusion.pictures.charts import axes_of, log_scale
from causalfusion.study.recipe import Study, entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 10
"""Values further apart than this factor are drawn on a logarithmic scale."""
BESIDE = 6
"""More variants than this are named beside the lines, which their names would cover."""


def save_picture(
    out: Path,
    study: Study,
    here: Mapping[str, Sequence[float]],
    paper: Mapping[str, float],
    num_tokens: int,
) -> None:
    """Save the picture; `here` are values per seed and `paper` single values, by "variant @ S"."""
    with_paper = {name: [value] for name, value in paper.items()}
    panels = 2 if with_paper else 1
    beside = 3.6 if len(study.variants) > BESIDE and len(study.all_ar_steps(num_tokens)) > 1 else 0.0
    with axes_of(out, panels, (5.5 * panels + beside, 4.4)) as axes:
        if with_paper:
            _draw(axes[0], study, with_paper, num_tokens)
            axes[0].set_title(f"The paper: {study.paper_figure}", fontsize=10)
        _draw(axes[-1], study, here, num_tokens)
        axes[-1].set_title("Here: Fréchet distance, mean and range over the seeds", fontsize=10)
        if beside:
            _legend(axes[-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw(axes: Axes, study: Study, values: Mapping[str, Sequence[float]], num_tokens: int) -> None:
    all_steps = study.all_ar_steps(num_tokens)
    steps = [s for s in all_steps if any(entry(v.name, s) in values for v in study.variants)]
    known = [value for per_seed in values.values() for value in per_seed if value > 0]
    if known and max(known) > WIDE * min(known):
        log_scale(axes)
    if len(steps) > 1:
        _draw_lines(axes, study, values, steps)
    elif steps:
        _draw_points(axes, study, values, steps[0])


def _draw_lines(
    axes: Axes, study: Study, values: Mapping[str, Sequence[float]], steps: Sequence[int]
) -> None:
    for place, variant in enumerate(study.variants):
        found = {s: values[e] for s in steps if (e := entry(variant.name, s)) in values}
        if found:
            places = [steps.index(s) for s in found]
            means = [statistics.fmean(per_seed) for per_seed in found.values()]
            axes.errorbar(
                places,
                means,
                yerr=_range(found.values()),
                color=f"C{place % 10}",
                marker="o",
                markersize=4,
                linewidth=1.6,
                capsize=2,
                label=variant.name,
            )
    axes.set_xticks(range(len(steps)), [f"S = {s}" for s in steps])
    axes.set_xlabel("AR steps in generation")
    if len(study.variants) <= BESIDE:
        _legend(axes)


def _legend(axes: Axes, **place: Any) -> None:
    axes.legend(frameon=False, fontsize=8, title="trained with", title_fontsize=8, **place)


def _draw_points(axes: Axes, study: Study, values: Mapping[str, Sequence[float]], step: int) -> None:
    found = {v.name: values[e] for v in study.variants if (e := entry(v.name, step)) in values}
    means = [statistics.fmean(per_seed) for per_seed in found.values()]
    rows, ranges = range(len(found)), _range(found.values())
    axes.errorbar(means, rows, xerr=ranges, fmt="o", color="#2f6db5", capsize=3)
    axes.set_yscale("linear")
    axes.set_yticks(rows, list(found))
    axes.invert_yaxis()
    axes.set_xlabel(f"S = {step} in generation")
    axes.margins(y=0.15)


def _range(groups: Iterable[Sequence[float]]) -> list[list[float]]:
    """[distances from the mean of each group down to its least value, distances up to its greatest]."""
    found = [(statistics.fmean(group), min(group), max(group)) for group in groups]
    return [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
