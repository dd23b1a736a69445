"""`causalfusion edit`: an image and a region in, a folder of edits out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.distributed import join_world
from causalfusion.errors import UserError
from causalfusion.generate.output import (
    check_prompts,
    describe,
    facts,
    load_pipeline,
    read_image,
    read_label,
    save_png,
    to_float,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.regions import read_mask, region_mask
from causalfusion.pictures import Edit, below, edit_sheet, framed, paragraph
from causalfusion.progress import ProgressLine
from causalfusion.saved import WeightsName

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


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
    paste: bool
    seed: int
    weights: WeightsName
    precision: str
    device: str
    settings: SampleConfig

    def __post_init__(self) -> None:
        if (self.mask is None) == (not self.region):
            raise UserError("expected one of --mask and --region: which pixels may change")
        if self.class_name is None and self.prompt is None:
            raise UserError("expected --class, --prompt, or both: what the region is to show")
        if self.variants < 1:
            raise UserError(f"--variants is {self.variants}; expected at least 1")


def edit_to_folder(request: EditRequest) -> Path:
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("edit runs in one process; start it without torchrun")
        pipeline, folder = load_pipeline(request.model, request.weights, request.precision, world)
        label, prompts = _condition(pipeline, request)
        config = pipeline.codec.config
        height, width = config.image_height, config.image_width
        original = read_image(request.image, height, width, config.image_channels)
        mask = _read_region(request, height, width)
        progress = ProgressLine(request.variants, 0)
        start = time.monotonic()
        edited = pipeline.edit(
            original[None], mask, [label], request.settings,
            prompts=prompts, seed=request.seed, variants=request.variants, paste=request.paste,
            watch=lambda event: progress.show(0, describe(event)),
        )  # fmt: skip
        progress.close()
        seconds = time.monotonic() - start
        request.out.mkdir(parents=True, exist_ok=True)
        pixels = pipeline.codec.to_uint8(edited)
        before = pipeline.codec.to_uint8(original[None])
        if request.paste:  # exactly the input's pixels, whatever rounding the way through floats had
            pixels = np.where(mask.numpy()[None, :, :, None], pixels, before)
        for index, image in enumerate(pixels):
            save_png(image, request.out / f"edited-{index:02d}.png")
        save_png(before[0], request.out / "original.png")
        save_png(mask.numpy()[:, :, None].astype(np.uint8) * 255, request.out / "mask.png")
        name = None if request.class_name is None else _name(pipeline, label)
        _draw_sheet(request, name, original, mask, pixels).save(request.out / "sheet.png")
        settings = {
            "command": "edit",
            "image": str(request.image),
            "mask": str(request.mask) if request.mask else None,
            "region": request.region,
            "class": name,
            "label": label,
            "prompt": request.prompt,
            "variants": request.variants,
            "paste": request.paste,
            **facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
            "seconds": round(seconds, 3),
        }
        (request.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        print(f"{request.variants} edits in {seconds:.1f} s in {request.out}")
    return request.out


def _condition(pipeline: Pipeline, request: EditRequest) -> tuple[int, list[str] | None]:
    """The label, the null label where no class was given, and the prompt."""
    label = pipeline.model.config.null_label
    if request.class_name is not None:
        label = read_label(pipeline, request.class_name)
    if request.prompt is None:
        return label, None
    check_prompts(pipeline, [request.prompt])
    return label, [request.prompt]


def _read_region(request: EditRequest, height: int, width: int) -> Tensor:
    """(H, W) True where pixels may change."""
    if request.mask is not None:
        return read_mask(request.mask, height, width)
    return region_mask(request.region, height, width)


def _name(pipeline: Pipeline, label: int) -> str:
    return pipeline.spec.class_names[label] if pipeline.spec.class_names else str(label)


def _draw_sheet(
    request: EditRequest, name: str | None, original: Tensor, mask: Tensor, pixels: np.ndarray
) -> Picture:
    """The original beside the first edits (n, H, W, C), beneath the prompt where there is one."""
    edits = [
        Edit(f"edit {index:02d}", mask, image[None], [name or "as prompted"])
        for index, image in enumerate(to_float(pixels)[:8])
    ]
    scale = max(1, 192 // original.shape[1])
    picture = edit_sheet(original[None], [request.image.name], edits, scale=scale)
    if request.prompt is None:
        return picture
    heading = paragraph(request.prompt, picture.width - 32, 20)
    return below([framed(heading), picture], gap=-16)
