"""The tab that describes: a picture in, the model's words for it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from causalfusion.app.change_tab import upload_button
from causalfusion.app.frames import Frame
from causalfusion.app.guard import guarded
from causalfusion.app.opened import Opened
from causalfusion.app.pictures import read_upload
from causalfusion.app.stage import HEAVY, LIGHT
from causalfusion.app.tiles import placeholder, tiles
from causalfusion.app.toolkit import gr
from causalfusion.app.work import describe
from causalfusion.errors import UserError


@dataclass(frozen=True)
class DescribeTab:
    shown: Any
    picture: Any
    """State: the picture, (H, W, C) uint8."""
    caption: Any
    run: Any

    @property
    def targets(self) -> list[Any]:
        """Where a picture is put to be described."""
        return [self.shown, self.picture]


def make_describe_tab(opened: Opened) -> DescribeTab:
    with gr.Row():
        with gr.Column(scale=5, min_width=280):
            shown = gr.HTML(placeholder("Choose a picture, or draw one first"), elem_id="cf-described")
            upload = upload_button("Choose a picture")
        with gr.Column(scale=7, min_width=280):
            caption = gr.Textbox(
                label="What the model sees", lines=3, interactive=False, elem_id="cf-caption",
                elem_classes="cf-caption",
            )  # fmt: skip
            start = gr.Button("Describe it", variant="primary", elem_id="cf-describe")

    @guarded
    def run(picture: Any) -> Iterator[str]:
        if picture is None:
            raise UserError("there is no picture yet; choose one, or draw one first")
        yield from describe(opened, picture)

    tab = DescribeTab(shown, gr.State(None), caption, run)
    start.click(run, tab.picture, caption, show_progress="hidden", **HEAVY)
    read = upload.upload(
        guarded(lambda path: describable(read_upload(path, opened.pipeline.codec))),
        upload,
        tab.targets,
        **LIGHT,
    )
    read.success(run, tab.picture, caption, show_progress="hidden", **HEAVY)
    return tab


def describable(picture: Any) -> list[Any]:
    """The values of `DescribeTab.targets` for a picture (H, W, C) uint8."""
    return [tiles(Frame(picture[None], ""), labels=["The picture, as the model sees it"]), picture]
