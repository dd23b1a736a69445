"""`causalfusion edit`: an image and a region in, a folder of edits out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.files import in_use
from causalfusion.generate.out_folder import begin, check_room, files_of, finish, settings_there
from causalfusion.generate.output import (
    check_prompts,
    describe,
    facts,
    load_pipeline,
    read_labels,
    save_png,
    say,
    warn_of_untrained_null,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.rank import best_of
from causalfusion.generate.read import read_image, to_float
from causalfusion.generate.regions import Original, read_mask, region_mask
from causalfusion.machine.processes import join_world
from causalfusion.machine.progress import ProgressLine, seconds_of_command
from causalfusion.pictures.compose import Edit, below, edit_sheet, framed, paragraph
from causalfusion.saved.folder import WeightsName

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SHOWN = 8
"""Edits on the sheet."""


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What `edit` was asked for."""

    image: Path
    model: Path
    class_name: str | None
    prompt: str | None
    mask: Path | None
    region: str
    out: Path
    variants: int
    candidates: int
    paste: bool
    seed: int
    weights: WeightsName
    precision: str
    device: str
    settings: SampleConfig
    autoencoder: str = ""
    """Where the model's autoencoder lies now, if neither in its folder nor where it was in training."""

    def __post_init__(self) -> None:
        if (self.mask is None) == (not self.region):
            raise UserError("expected one of --mask and --region: which pixels may change")
        if self.class_name is None and self.prompt is None:
            raise UserError("expected --class, --prompt, or both: what the region is to show")
        if self.variants < 1:
            raise UserError(f"--variants is {self.variants}; expected at least 1")
        if self.candidates < 1 or (self.candidates > 1 and self.prompt is None):
            expected = "--prompt with it, or 1" if self.candidates > 1 else "at least 1"
            raise UserError(f"--candidates is {self.candidates}; expected {expected}")


def edit_to_folder(request: EditRequest) -> Path:
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("edit runs in one process; start it without torchrun")
        pipeline, folder = load_pipeline(
            request.model, request.weights, request.precision, world, request.autoencoder
        )
        label, prompts = _condition(pipeline, request)
        config = pipeline.codec.config
        height, width = config.image_height, config.image_width
        original = read_image(request.image, height, width, config.image_channels)
        mask = _read_region(request, height, width)
        warn_of_untrained_null(pipeline, request.settings, [label])
        settings = {
            "command": "edit",
            "image": str(request.image),
            "mask": str(request.mask) if request.mask else None,
            "region": request.region,
            "class": None if request.class_name is None else _name(pipeline, label),
            "label": label,
            "prompt": request.prompt,
            "variants": request.variants,
            "candidates": request.candidates,
            "paste": request.paste,
            **facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
        }
        earlier = settings_there(request.out, "edit") if request.out.is_dir() else None
        check_room(request.out, "edit", files_of(settings), earlier)
        start = time.monotonic()
        edited = _edit(pipeline, request, original, mask, label, prompts)
        pixels = pipeline.codec.to_uint8(edited)
        before = pipeline.codec.to_uint8(original[None])
        if request.paste:  # exactly the input's pixels, whatever rounding the way through floats had
            pixels = np.where(mask.numpy()[None, :, :, None], pixels, before)
        read_as = None if pipeline.tokenizer is None else pipeline.caption(to_float(pixels[:SHOWN]))
        with in_use(request.out, "the folder"):
            begin(request.out, settings, earlier, keep=False)
            for index, image in enumerate(pixels):
                save_png(image, request.out / f"edited-{index:02d}.png")
            save_png(before[0], request.out / "original.png")
            save_png(mask.numpy()[:, :, None].astype(np.uint8) * 255, request.out / "mask.png")
            sheet = _draw_sheet(request, settings["class"], original, mask, pixels, read_as)
            save_png(np.asarray(sheet), request.out / "sheet.png")
            seconds = seconds_of_command(time.monotonic() - start)
            finish(request.out, {**settings, "read_as": read_as, "seconds": round(seconds, 3)})
        many = "s" * (request.variants > 1)
        say(f"{request.variants} edit{many} in {seconds:.1f} s in {request.out}")
    return request.out


def _edit(
    pipeline: Pipeline, request: EditRequest, original: Tensor, mask: Tensor, label: int,
    prompts: list[str] | None,
) -> Tensor:  # fmt: skip
    """(variants, C, H, W), each the best of its candidates."""
    progress = ProgressLine(request.variants, 0, what="edits")

    def draw(seed: int) -> Tensor:
        return pipeline.edit(
            original[None], mask, [label], request.settings,
            prompts=prompts, seed=seed, variants=request.variants, paste=request.paste,
            watch=lambda event: progress.show(0, describe(event)),
        )  # fmt: skip

    captions = (prompts or [""]) * request.variants
    edited = best_of(draw, pipeline, captions, request.candidates, request.seed)
    progress.close()
    return edited


def _condition(pipeline: Pipeline, request: EditRequest) -> tuple[int, list[str] | None]:
    """The label, the null label where no class was given, and the prompt."""
    label = pipeline.model.config.null_label
    if request.class_name is not None:
        (label,) = read_labels(pipeline, [request.class_name])
    if request.prompt is None:
        return label, None
    check_prompts(pipeline, [request.prompt])
    return label, [request.prompt]


def _read_region(request: EditRequest, height: int, width: int) -> Tensor:
    """(H, W) True where pixels may change."""
    if request.mask is not None:
        return read_mask(request.mask, height, width, Original.of(request.image))
    return region_mask(request.region, height, width)


def _name(pipeline: Pipeline, label: int) -> str:
    return pipeline.spec.class_names[label] if pipeline.spec.class_names else str(label)


def _draw_sheet(
    request: EditRequest, name: str | None, original: Tensor, mask: Tensor, pixels: np.ndarray,
    read_as: list[str] | None,
) -> Picture:  # fmt: skip
    """The original beside the first edits (n, H, W, C), beneath what was asked for; below each edit, of a
    model with text, what the model itself reads in it: the edit may be another than the one asked for."""
    edits = [
        Edit(f"edit {index:02d}", mask, image[None], [""])
        for index, image in enumerate(to_float(pixels)[:SHOWN])
    ]
    scale = max(1, 192 // original.shape[1])
    notes = None if read_as is None else [f"read by the model as: {text}" for text in read_as]
    picture = edit_sheet(original[None], [request.image.name], edits, scale=scale, notes=notes)
    asked = [f"class: {name}"] * (name is not None) + [f"prompt: {request.prompt}"] * bool(request.prompt)
    heading = paragraph(", ".join(asked), picture.width - 32, 20)
    return below([framed(heading), picture], gap=-16)
