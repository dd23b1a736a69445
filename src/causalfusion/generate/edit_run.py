"""`causalfusion edit`: an image and a region in, a folder of edits out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from causalfusion.config import SampleConfig
from causalfusion.distributed import join_world
from causalfusion.errors import UserError
from causalfusion.generate.output import describe, facts, load_pipeline, read_image, save_png, to_float
from causalfusion.generate.regions import read_mask, region_mask
from causalfusion.generate.settings import parse_class
from causalfusion.pictures import Edit, edit_sheet
from causalfusion.progress import ProgressLine
from causalfusion.saved import WeightsName


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What `edit` was asked for."""

    image: Path
    model: Path
    class_name: str
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
        if self.variants < 1:
            raise UserError(f"--variants is {self.variants}; expected at least 1")


def edit_to_folder(request: EditRequest) -> Path:
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("edit runs in one process; start it without torchrun")
        pipeline, folder = load_pipeline(request.model, request.weights, request.precision, world)
        config = pipeline.codec.config
        label = parse_class(request.class_name, pipeline.spec.class_names, pipeline.model.config.num_classes)
        original = read_image(request.image, config.image_height, config.image_width, config.image_channels)
        height, width = config.image_height, config.image_width
        if request.mask is not None:
            mask = read_mask(request.mask, height, width)
        else:
            mask = region_mask(request.region, height, width)
        progress = ProgressLine(request.variants, 0)
        start = time.monotonic()
        edited = pipeline.edit(
            original[None], mask, [label], request.settings,
            seed=request.seed, variants=request.variants, paste=request.paste,
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
        name = pipeline.spec.class_names[label] if pipeline.spec.class_names else str(label)
        edits = [
            Edit(f"edit {index:02d}", mask, image[None], [name])
            for index, image in enumerate(to_float(pixels))
        ]
        scale = max(1, 192 // config.image_height)
        edit_sheet(original[None], [request.image.name], edits[:8], scale=scale).save(
            request.out / "sheet.png"
        )
        settings = {
            "command": "edit",
            "image": str(request.image),
            "mask": str(request.mask) if request.mask else None,
            "region": request.region,
            "class": name,
            "label": label,
            "variants": request.variants,
            "paste": request.paste,
            **facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
            "seconds": round(seconds, 3),
        }
        (request.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        print(f"{request.variants} edits in {seconds:.1f} s in {request.out}")
    return request.out
