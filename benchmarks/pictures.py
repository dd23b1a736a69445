"""The results as plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalfusion.pictures.charts import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, FAINT = "#2f6db5", "#f07814", "#8a929c", "#b9cfe8"
NAMES = {"tokens": "image tokens, L", "ar_steps": "AR steps, S", "batch": "images at once"}


def save_pictures(report: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """A picture of each part that was measured."""
    saved = []
    if "reference" in report:
        saved.append(folder / f"{name}-shares.png")
        _shares(report["reference"]["results"], saved[-1])
    if "growth" in report:
        saved.append(folder / f"{name}-growth.png")
        _growth(report["growth"]["points"], saved[-1])
        saved.append(folder / f"{name}-memory.png")
        _memory(report["growth"]["points"], saved[-1])
    return saved


def _shares(results: list[dict[str, Any]], out: Path) -> None:
    labels = [f"{r['workload']}\n{r['precision']}" for r in results]
    with axes_of(out, 1, (7.0, 4.0)) as (axes,):
        for offset, variant, colour in ((-0.2, "naive", FAINT), (0.2, "ours", BLUE)):
            places = [k + offset for k in range(len(results))]
            shares = [r["timings"][variant]["needed_share_median"] for r in results]
            bars = axes.bar(
                places,
                shares,
                width=0.38,
                color=colour,
                label="naive path" if variant == "naive" else "our path",
            )
            axes.bar_label(bars, [f"{s:.2f}" for s in shares], fontsize=9, padding=2)
        axes.set_xticks(range(len(results)), labels)
        axes.axhline(1, color=GREY, linewidth=1)
        axes.set_ylim(0, 1.2)
        axes.set_ylabel("needed arithmetic over time,\nof the machine's matrix rate")
        axes.set_title("Share of the machine's arithmetic")
        axes.legend(frameon=False, loc="upper right", ncols=2)


def _growth(points: list[dict[str, Any]], out: Path) -> None:
    """For each axis, milliseconds of an image beside what its arithmetic takes at the matrix rate."""
    axes_here = [a for a in NAMES if sum(p["axis"] == a for p in points) > 1]
    with axes_of(out, len(axes_here), (4.8 * len(axes_here), 4.2)) as panels:
        for panel, axis in zip(panels, axes_here, strict=True):
            chosen = [p for p in points if p["axis"] == axis]
            x = [p["value"] for p in chosen]
            for workload, colour in (("train", BLUE), ("sample", ORANGE)):
                found = [(p[workload], p["batch_size"]) for p in chosen if workload in p]
                measured = [1e3 * w["seconds"] / n for w, n in found]
                ideal = [1e3 * w["seconds"] * w["share_needed"] / n for w, n in found]
                says = "training" if workload == "train" else "sampling"
                panel.plot(x, measured, "o-", color=colour, markersize=4, label=f"{says}, measured")
                panel.plot(
                    x, ideal, "--", color=colour, linewidth=1, label=f"{says}, needed arithmetic alone"
                )
            _log_axes(panel, x)
            panel.set_xlabel(NAMES[axis])
            panel.set_title(f"By {NAMES[axis]}")
        panels[0].set_ylabel("milliseconds an image (log scale)")
        handles, labels = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _memory(points: list[dict[str, Any]], out: Path) -> None:
    axes_here = [a for a in ("tokens", "batch") if sum(p["axis"] == a for p in points) > 1]
    with axes_of(out, len(axes_here), (4.8 * len(axes_here), 4.0)) as panels:
        for panel, axis in zip(panels, axes_here, strict=True):
            chosen = [p for p in points if p["axis"] == axis]
            x = [p["value"] for p in chosen]
            peak, estimated = ([p[key] / 1e9 for p in chosen] for key in ("peak_bytes", "estimated_bytes"))
            panel.plot(x, peak, "o-", color=BLUE, markersize=4, label="counted")
            panel.plot(x, estimated, "--", color=ORANGE, label="estimated")
            _log_axes(panel, x)
            panel.set_xlabel(NAMES[axis] + (" (fewer images at once beyond 128)" if axis == "tokens" else ""))
            panel.legend(frameon=False)
        panels[0].set_ylabel("GB at the peak of a train step (log scale)")


def _log_axes(panel: Axes, x: list[int]) -> None:
    from matplotlib.ticker import LogLocator

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(x, [f"{v:,}" for v in x])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
