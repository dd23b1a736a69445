"""The page: its tabs, and the ways between them."""

from __future__ import annotations

from typing import Any

from causalfusion.app.change_tab import ChangeTab, make_change_tab, paintable
from causalfusion.app.describe_tab import DescribeTab, describable, make_describe_tab
from causalfusion.app.draw_tab import DrawTab, follow_link, make_draw_tab
from causalfusion.app.guard import guarded
from causalfusion.app.opened import Opened
from causalfusion.app.quality_tab import make_quality_tab, settings_in_time
from causalfusion.app.stage import HEAVY, LIGHT, chosen_picture
from causalfusion.app.toolkit import gr
from causalfusion.config.sizes import size_text
from causalfusion.errors import UserError

DRAW, CHANGE, DESCRIBE, QUALITY = "draw", "change", "describe", "quality"
MOST_WAITING = 16
"""Jobs in the queue; further ones are told to come later."""


def make_page(opened: Opened) -> Any:
    """The page of a model, ready to be launched."""
    # No telemetry, and no question for newer versions; pictures of users are deleted after an hour.
    with gr.Blocks(
        title=f"CausalFusion: {opened.name}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(_title(opened), elem_classes="cf-title", sanitize_html=True)
        with gr.Tabs(selected=DRAW) as tabs:
            with gr.Tab("Draw", id=DRAW):
                drawing = make_draw_tab(opened)
            if opened.edits:
                with gr.Tab("Change a part", id=CHANGE):
                    _to_change(tabs, drawing, make_change_tab(opened, drawing.controls))
            if opened.describes:
                with gr.Tab("Describe", id=DESCRIBE):
                    _to_describe(tabs, drawing, make_describe_tab(opened))
            with gr.Tab("Quality and time", id=QUALITY):
                quality = make_quality_tab(opened, drawing.controls)
        follow_link(page, opened, drawing)

        @guarded
        def use(tried: Any, milliseconds: float, *values: object) -> list[Any]:
            return [gr.Tabs(selected=DRAW), *settings_in_time(opened, tried, milliseconds, values)]

        quality.use.click(
            use, [quality.tried, quality.milliseconds, *drawing.inputs], [tabs, *drawing.inputs], **LIGHT
        )
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=4)
    return page


def _title(opened: Opened) -> str:
    size = size_text(*opened.pipeline.image_size)
    what = "what you describe" if opened.reads_text else "pictures of its classes"
    if not opened.reads_text and not opened.class_names:
        what = "pictures like those it has seen"
    return f"# CausalFusion\n\nThe model {_named(opened)} draws {what}, part by part, at {size} pixels."


def _named(opened: Opened) -> str:
    """The model, and the adapters in it with their hashes and weights."""
    adapters = ", ".join(f"`{told}`" for told in opened.adapters)
    return f"`{opened.name}`" + (f" with {adapters}" if adapters else "")


def _picture(frames: Any, chosen: int) -> Any:
    picture = chosen_picture(frames, chosen)
    if picture is None:
        raise UserError("there is no picture yet; draw one first")
    return picture


def _to_change(tabs: Any, drawing: DrawTab, tab: ChangeTab) -> None:
    """The chosen picture goes to the tab that changes a part."""

    @guarded
    def go(frames: Any, chosen: int, prompt: str) -> list[Any]:
        return [gr.Tabs(selected=CHANGE), *paintable(_picture(frames, chosen)), prompt]

    inputs = [drawing.stage.frames, drawing.stage.chosen, drawing.controls.by_field["prompt"]]
    drawing.onward["change"].click(go, inputs, [tabs, *tab.targets, tab.prompt], **LIGHT)


def _to_describe(tabs: Any, drawing: DrawTab, tab: DescribeTab) -> None:
    """The chosen picture goes to the tab that describes, and is described."""

    @guarded
    def go(frames: Any, chosen: int) -> list[Any]:
        return [gr.Tabs(selected=DESCRIBE), *describable(_picture(frames, chosen))]

    went = drawing.onward["describe"].click(
        go, [drawing.stage.frames, drawing.stage.chosen], [tabs, *tab.targets], **LIGHT
    )
    went.success(tab.run, tab.picture, tab.caption, show_progress="hidden", **HEAVY)
