"""The tab that draws: what to draw, the images coming into being, and a link that draws them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from causalfusion.app.asked import Asked, from_query, to_query
from causalfusion.app.controls import (
    Controls,
    finer_controls,
    first_controls,
    read_controls,
    values_of,
)
from causalfusion.app.guard import guarded, on_the_page
from causalfusion.app.look import FOLLOW_LINK
from causalfusion.app.opened import Opened
from causalfusion.app.stage import HEAVY, PRIVATE, Stage, make_stage
from causalfusion.app.toolkit import gr
from causalfusion.app.work import draw


@dataclass(frozen=True)
class DrawTab:
    controls: Controls
    stage: Stage
    onward: dict[str, Any]
    """Buttons that lead to other tabs with the chosen picture."""
    from_link: Any
    """State: True where the page was opened by a link that asks for pictures."""
    query: Any
    link: Any
    run: Any
    """The function that draws, with the values of `inputs`, to `outputs`."""

    @property
    def inputs(self) -> list[Any]:
        return self.controls.components

    @property
    def outputs(self) -> list[Any]:
        return [*self.stage.components, self.query]


def make_draw_tab(opened: Opened) -> DrawTab:
    """Components and events; to be called where the tab is laid out."""
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            fields = first_controls(opened)
            with gr.Row():
                start = gr.Button("Draw", variant="primary", scale=3, elem_id="cf-draw")
                stop = gr.Button("Stop", scale=1, min_width=80)
            with gr.Accordion("More settings", open=False, elem_id="cf-more"):
                fields |= finer_controls(opened)
        with gr.Column(scale=7, min_width=300):
            stage = make_stage("cf-draw", "Pictures appear here, part by part")
            with stage.more:
                with gr.Row():
                    onward = _onward(opened)
                link = gr.Textbox(
                    label="Link to these pictures", interactive=False, buttons=["copy"], lines=1, max_lines=1,
                    elem_id="cf-link",
                )  # fmt: skip
    controls = Controls(fields)
    query, from_link = gr.Textbox(visible=False), gr.State(False)

    @guarded
    def run(*values: object) -> Iterator[list[Any]]:
        asked = read_controls(opened, values)
        for shown in stage.live(draw(opened, asked)):
            yield [*shown, gr.skip()]
        yield [*[gr.skip()] * len(stage.components), to_query(asked, opened.name)]

    tab = DrawTab(controls, stage, onward, from_link, query, link, run)
    begins = [start.click]
    if opened.reads_text:
        begins.append(fields["prompt"].submit)
    jobs: list[Any] = [
        begin(run, tab.inputs, tab.outputs, show_progress="hidden", trigger_mode="once", **HEAVY)
        for begin in begins
    ]
    for job in jobs:
        _then_link(job, tab)
    stop.click(None, cancels=jobs, **PRIVATE)
    return tab


def _onward(opened: Opened) -> dict[str, Any]:
    buttons = {}
    if opened.edits:
        buttons["change"] = gr.Button("Change a part of it", size="sm", elem_id="cf-to-change")
    if opened.describes:
        buttons["describe"] = gr.Button("Describe it", size="sm", elem_id="cf-to-describe")
    return buttons


def _then_link(job: Any, tab: DrawTab) -> None:
    """After a job that drew: the link in its box and in the browser's address."""
    job.success(None, tab.query, tab.link, js=FOLLOW_LINK, **PRIVATE)


def follow_link(page: Any, opened: Opened, tab: DrawTab) -> None:
    """When the page is opened by a link: set the controls as it says, and draw."""

    @guarded
    def read(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        asked = from_query(query, opened.defaults())
        if asked is None:
            return [False, *[gr.skip()] * len(tab.inputs)]
        if query.get("model", opened.name) != opened.name:
            gr.Warning(
                "The link is to pictures of another model; those of this one differ.", title="Another model"
            )
        return [True, *values_of(listed(opened, asked))]

    def draw_if_asked(linked: bool, *values: object) -> Iterator[list[Any]]:
        with on_the_page():
            if linked:
                yield from tab.run(*values)
            else:  # without a single value, Gradio would empty the components
                yield [gr.skip()] * len(tab.outputs)

    opening = page.load(read, None, [tab.from_link, *tab.inputs], show_progress="hidden", **PRIVATE)
    drawing = opening.success(
        draw_if_asked, [tab.from_link, *tab.inputs], tab.outputs, show_progress="hidden", **HEAVY
    )
    _then_link(drawing, tab)


def listed(opened: Opened, asked: Asked) -> Asked:
    """The same with its class as the list of classes has it. Raises UserError for what the model refuses."""
    opened.check(asked)
    if not asked.class_name:
        return asked
    label = opened.labels(asked, 1)
    return replace(asked, class_name=f"index:{label[0]}" if label else "")
