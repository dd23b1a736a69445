"""The tab that changes a part: a picture, paint over it, and variants of what was painted over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from causalfusion.app.controls import Controls, class_box, prompt_box, read_controls
from causalfusion.app.guard import guarded
from causalfusion.app.opened import Opened
from causalfusion.app.painter import PAINT, WITH_PAINTING, no_picture, painted_mask, painter
from causalfusion.app.pictures import read_upload
from causalfusion.app.stage import HEAVY, LIGHT, PRIVATE, Stage, chosen_picture, make_stage
from causalfusion.app.toolkit import gr
from causalfusion.app.work import change
from causalfusion.errors import UserError

MOST_VARIANTS = 8


@dataclass(frozen=True)
class ChangeTab:
    paper: Any
    picture: Any
    """State: the picture, (H, W, C) uint8."""
    prompt: Any
    stage: Stage

    @property
    def targets(self) -> list[Any]:
        """Where a picture is put to be changed."""
        return [self.paper, self.picture]


def make_change_tab(opened: Opened, drawing: Controls) -> ChangeTab:
    """`drawing`: the controls of the first tab, whose finer settings apply here too."""
    height, width = opened.pipeline.image_size
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            paper = gr.HTML(no_picture(), js_on_load=PAINT, elem_id="cf-painter")
            upload = upload_button("Choose a picture")
        with gr.Column(scale=7, min_width=300):
            prompt = prompt_box(opened, "What should the whole picture show then?")
            class_name = class_box(opened, every=False)
            with gr.Row():
                variants = gr.Slider(1, MOST_VARIANTS, 4, step=1, label="Variants", elem_id="cf-variants")
                strength = gr.Slider(0.1, 1, 1, step=0.05, label="How much may change", elem_id="cf-strength")
            with gr.Row():
                start = gr.Button("Change the painted part", variant="primary", scale=3, elem_id="cf-change")
                stop = gr.Button("Stop", scale=1, min_width=80)
            stage = make_stage("cf-change", "Variants appear here, side by side", "Variant")
            with stage.more:
                again = gr.Button("Go on with the chosen variant", size="sm", elem_id="cf-go-on")
            gr.Markdown("Seed and finer settings are those under *Draw*.", elem_classes="cf-words")
    tab = ChangeTab(paper, gr.State(None), prompt, stage)

    @guarded
    def run(
        painting: str,
        picture: Any,
        prompt: str,
        class_name: str,
        variants: float,
        strength: float,
        *finer: object,
    ) -> Iterator[list[Any]]:
        if picture is None:
            raise UserError("there is no picture yet; choose one, or draw one first")
        mask = painted_mask(painting, height, width)
        asked = read_controls(opened, finer)
        asked = replace(asked, prompt=prompt or "", class_name=class_name or "", images=int(variants))
        yield from stage.live(change(opened, picture, mask, asked, strength))

    @guarded
    def go_on(frames: Any, chosen: int) -> list[Any]:
        picture = chosen_picture(frames, chosen)
        if picture is None:
            raise UserError("there are no variants yet; change a part first")
        return paintable(picture)

    painting = gr.Textbox(visible=False)  # filled by the script, as the job is sent
    inputs = [painting, tab.picture, prompt, class_name, variants, strength, *drawing.components]
    job = start.click(
        run, inputs, stage.components, js=WITH_PAINTING, show_progress="hidden", trigger_mode="once", **HEAVY
    )
    stop.click(None, cancels=[job], **PRIVATE)
    again.click(go_on, [stage.frames, stage.chosen], tab.targets, **LIGHT)
    upload.upload(
        guarded(lambda path: paintable(read_upload(path, opened.pipeline.codec))),
        upload,
        tab.targets,
        **LIGHT,
    )
    return tab


def upload_button(label: str) -> Any:
    return gr.UploadButton(label, file_types=["image"], type="filepath", size="sm", elem_classes="cf-upload")


def paintable(picture: Any) -> list[Any]:
    """The values of `ChangeTab.targets` for a picture (H, W, C) uint8."""
    return [painter(picture), picture]
