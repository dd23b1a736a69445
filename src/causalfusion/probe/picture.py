"""A chart of accuracy over layers: one plot for each kind of probe, one line for each noise level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalfusion.pictures.charts import axes_of
from causalfusion.probe.figures import Figure

_COLORS = ("#2f6db5", "#3aa76d", "#c2504f", "#8a5fbf", "#d08a1d", "#5b6670")


def save_picture(out: Path, figures: Sequence[Figure]) -> None:
    """Save the chart; bands are the accuracies' 95 % intervals."""
    kinds = list(dict.fromkeys(figure.kind for figure in figures))
    levels = list(dict.fromkeys(figure.level for figure in figures))
    with axes_of(out, len(kinds), (5.2 * len(kinds) + 0.4, 4.2)) as every:
        for kind, axes in zip(kinds, every, strict=True):
            for place, level in enumerate(levels):
                own = sorted(
                    (f for f in figures if f.kind == kind and f.level == level), key=lambda f: f.layer
                )
                layers, color = [f.layer for f in own], _COLORS[place % len(_COLORS)]
                label = level if level == "clean" else f"level {level}"
                axes.plot(layers, [100 * f.accuracy for f in own], "o-", color=color, label=label)
                low, high = [100 * f.low for f in own], [100 * f.high for f in own]
                axes.fill_between(layers, low, high, color=color, alpha=0.12, linewidth=0)
            axes.set_title(kind)
            axes.set_xticks(sorted({figure.layer for figure in figures}))
            axes.set_xlabel("layer (0: what enters the first block)")
            axes.set_ylabel("held-out accuracy, %")
            axes.legend(frameon=False, fontsize=8)
