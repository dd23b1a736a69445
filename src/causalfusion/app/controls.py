"""The controls of a request, as components of the page, and their way to an `Asked`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from causalfusion.app.asked import (
    LAST_SEED,
    LONGEST_TEXT,
    MOST_DIFFUSION_STEPS,
    MOST_GUIDANCE,
    MOST_IMAGES,
    Asked,
    read_asked,
)
from causalfusion.app.opened import Opened
from causalfusion.app.toolkit import gr

ORDERS = (
    ("scattered", "random"),
    ("row by row", "raster"),
    ("block by block", "block_raster"),
    ("spread out", "dilated"),
)
_FIELDS = tuple(field.name for field in fields(Asked))


@dataclass(frozen=True)
class Controls:
    """Components by the field of `Asked` that they set. Those that a model has no use for are hidden."""

    by_field: dict[str, Any]

    @property
    def components(self) -> list[Any]:
        """In the order of the fields."""
        return [self.by_field[name] for name in _FIELDS]


def read_controls(opened: Opened, values: Sequence[object]) -> Asked:
    """From the values of `Controls.components`. Raises UserError."""
    return read_asked(dict(zip(_FIELDS, values, strict=True)), opened.defaults())


def values_of(asked: Asked) -> list[Any]:
    """The values for `Controls.components`."""
    return [getattr(asked, name) for name in _FIELDS]


def first_controls(opened: Opened) -> dict[str, Any]:
    """What the pictures are to show, and how many of them."""
    prompt = prompt_box(opened, "What should the picture show?")
    if opened.examples:
        gr.Examples([[text] for text in opened.examples], prompt, label="Try one of these")
    class_name = class_box(opened, every=True)
    images = gr.Slider(
        1,
        MOST_IMAGES,
        opened.defaults().images,
        step=1,
        label="Number of pictures",
        buttons=[],
        elem_id="cf-images",
    )
    return {"prompt": prompt, "class_name": class_name, "images": images}


def prompt_box(opened: Opened, label: str) -> Any:
    example = opened.examples[:1]
    return gr.Textbox(
        label=label,
        placeholder=f"for example: {example[0]}" if example else "a few words",
        lines=2,
        max_length=LONGEST_TEXT,
        visible=opened.reads_text,
        elem_classes="cf-prompt",
    )


def class_box(opened: Opened, *, every: bool) -> Any:
    """A list of the classes. Their values are numbers, as several may have the same name; `every`: with the
    entry "every class in turn", whose value is empty."""
    names = opened.class_names
    choices = [("every class in turn", "")] * every + [(name, f"index:{k}") for k, name in enumerate(names)]
    value = "" if every or not names else "index:0"
    return gr.Dropdown(
        choices or [("", "")], value=value, label="Class", visible=bool(names), elem_classes="cf-class"
    )


def finer_controls(opened: Opened) -> dict[str, Any]:
    """How pictures are made, and a button for another seed."""
    own = opened.defaults()
    follows = "description" if opened.reads_text else "class"
    parts = gr.Slider(
        1,
        max(2, opened.most_ar_steps),
        own.ar_steps,
        step=1,
        label="Parts (AR steps)",
        info=f"1: the whole picture at once; {opened.most_ar_steps}: one patch after another",
        visible=opened.chooses_parts and opened.most_ar_steps > 1,
        elem_id="cf-parts",
    )
    order = gr.Dropdown(
        list(ORDERS), value=own.order, label="Order of the parts", visible=opened.chooses_parts
    )
    steps = gr.Slider(
        1,
        MOST_DIFFUSION_STEPS,
        own.diffusion_steps,
        step=1,
        label="Refinement steps of each part (diffusion steps)",
        info="more: cleaner, and slower",
        elem_id="cf-steps",
    )
    guidance = gr.Slider(
        0,
        MOST_GUIDANCE,
        own.guidance,
        step=0.1,
        label=f"How closely to follow the {follows} (guidance)",
        info="1: as in training; more: closer, and less varied",
        visible=opened.can_be_guided,
        elem_id="cf-guidance",
    )
    with gr.Row(equal_height=True):
        seed = gr.Number(
            own.seed,
            label="Seed",
            info="the same number gives the same pictures",
            precision=0,
            minimum=0,
            maximum=LAST_SEED,
            min_width=120,
            scale=3,
            elem_id="cf-seed",
        )
        other = gr.Button("Another seed", size="sm", min_width=80, scale=1)
    other.click(lambda: secrets.randbelow(10**6), outputs=seed, queue=False, api_visibility="private")
    return {"ar_steps": parts, "order": order, "diffusion_steps": steps, "guidance": guidance, "seed": seed}
