"""The tab of quality against time: a few settings measured on demand, and drawn as they come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from causalfusion.app.controls import Controls, read_controls, values_of
from causalfusion.app.guard import guarded
from causalfusion.app.opened import Opened
from causalfusion.app.quality import (
    LEAST_IMAGES,
    MOST_IMAGES,
    Measured,
    as_asked,
    best_within,
    chart,
    in_words,
    measure,
    open_page_judge,
    sweep_around,
    table,
)
from causalfusion.app.stage import HEAVY, PRIVATE, QUICK
from causalfusion.app.toolkit import gr
from causalfusion.errors import UserError
from causalfusion.evaluate.quality import Judge

HEADINGS = ["parts", "refinement steps in each", "time for a picture", "distance", "as asked", ""]
ABOUT = (
    "More refinement steps take longer and are usually better, up to a point. Here a few settings draw "
    "pictures, which are compared with real ones: the lower a point, the closer to them; the further left, "
    "the quicker."
)


@dataclass(frozen=True)
class QualityTab:
    use: Any
    tried: Any
    """State: what is measured."""
    milliseconds: Any


class _Judges:
    """The judge of the page, opened when it is first needed."""

    def __init__(self, opened: Opened) -> None:
        self._opened, self._lock, self._judge = opened, threading.Lock(), None

    def get(self) -> Judge:
        with self._lock:
            if self._judge is None:
                self._judge = open_page_judge(self._opened)
            return self._judge


def make_quality_tab(opened: Opened, drawing: Controls) -> QualityTab:
    """`drawing`: the controls of the first tab, whose settings are measured among the others."""
    judges = _Judges(opened)
    gr.Markdown(ABOUT)
    with gr.Row():
        images = gr.Slider(
            LEAST_IMAGES, MOST_IMAGES, 64, step=16, label="Pictures drawn for each setting",
            info="more: surer, and slower", elem_id="cf-quality-images",
        )  # fmt: skip
        milliseconds = gr.Slider(
            1, 2000, 50, step=1, label="Time that a picture may take, in milliseconds",
            info="the dashed line", elem_id="cf-quality-time",
        )  # fmt: skip
    with gr.Row():
        start = gr.Button("Measure", variant="primary", scale=3, elem_id="cf-measure")
        stop = gr.Button("Stop", scale=1, min_width=80)
    words = gr.Markdown("", elem_classes="cf-words", elem_id="cf-quality-words")
    picture = gr.Image(
        type="numpy", format="png", interactive=False, show_label=False, buttons=["download", "fullscreen"],
        elem_id="cf-quality-chart", visible=False,
    )  # fmt: skip
    rows = gr.Dataframe(headers=HEADINGS, interactive=False, visible=False, elem_id="cf-quality-table")
    use = gr.Button("Draw with the best within that time", elem_id="cf-quality-use", visible=False)
    tried = gr.State(())

    @guarded
    def run(count: float, limit: float, *values: object) -> Iterator[list[Any]]:
        asked = read_controls(opened, values)
        yield ["Real pictures are read.", *[gr.skip()] * 4]
        for measured in measure(opened, judges.get(), sweep_around(opened, asked), int(count)):
            yield _shown(measured, limit / 1000)

    @guarded
    def redraw(limit: float, tried: Any) -> list[Any]:
        return [_verdict(tried, limit / 1000), chart(tried, limit / 1000)] if tried else [gr.skip()] * 2

    job = start.click(
        run, [images, milliseconds, *drawing.components], [words, picture, rows, use, tried],
        show_progress="hidden", trigger_mode="once", **HEAVY,
    )  # fmt: skip
    stop.click(None, cancels=[job], **PRIVATE)
    milliseconds.release(redraw, [milliseconds, tried], [words, picture], **QUICK)
    return QualityTab(use, tried, milliseconds)


def settings_in_time(
    opened: Opened, tried: Any, milliseconds: float, values: tuple[object, ...]
) -> list[Any]:
    """The values of the first tab's controls with the best of the measured settings. Raises UserError."""
    if not tried:
        raise UserError("nothing is measured yet; press Measure first")
    best = best_within(tried, milliseconds / 1000)
    return values_of(as_asked(best, read_controls(opened, values)))


def _shown(measured: Measured, seconds: float) -> list[Any]:
    """(words, chart, table, button, state) of what is measured so far."""
    tried = measured.tried
    if measured.now:
        words = f"Setting {len(tried) + 1} of {measured.planned}: {measured.now}"
    else:
        words = _verdict(tried, seconds)
    if not tried:
        return [words, *[gr.skip()] * 4]
    return [
        words,
        gr.Image(chart(tried, seconds), visible=True),
        gr.Dataframe(table(tried), visible=True),
        gr.Button(visible=not measured.now),
        tried,
    ]


def _verdict(tried: Any, seconds: float) -> str:
    best = best_within(tried, seconds)
    limit = f"{seconds * 1000:g} ms"
    if best.seconds_per_image > seconds:
        return f"None of these takes at most {limit} here; the quickest: {in_words(best.settings)}"
    return f"Best within {limit}: {in_words(best.settings)}"
