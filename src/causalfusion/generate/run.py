"""`causalfusion sample` and `edit`: a request in, a folder of pictures out."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalfusion import __version__
from causalfusion.config import SampleConfig, to_dict
from causalfusion.distributed import World, join_world
from causalfusion.errors import UserError
from causalfusion.generate.layout import batches_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.regions import read_mask, region_mask
from causalfusion.generate.settings import parse_class
from causalfusion.generate.tokens import StepEvent
from causalfusion.pictures import Edit, edit_sheet, to_image_grid
from causalfusion.progress import ProgressLine
from causalfusion.saved import WeightsName, latest_model


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `sample` was asked for."""

    model: Path
    out: Path
    num: int
    classes: list[str]
    first: int
    batch_size: int
    seed: int
    weights: WeightsName
    output: Sequence[str]
    precision: str
    device: str
    settings: SampleConfig

    def __post_init__(self) -> None:
        for flag, value in (("--images", self.num), ("--batch-size", self.batch_size)):
            if value < 1:
                raise UserError(f"{flag} is {value}; expected at least 1")
        if self.first < 0:
            raise UserError(f"--first is {self.first}; expected 0 or more")


def sample_to_folder(request: Request) -> Path:
    """Generate the images of a request; the processes of a world take batches in turn."""
    with join_world(request.device) as world:
        pipeline, folder = _load(request.model, request.weights, request.precision, world)
        labels = _labels(pipeline, request)
        request.out.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        parts = request.out / f".part-{world.rank}.npz"
        indices, images = _generate(pipeline, request, labels, world)
        if world.size > 1:
            np.savez(parts, indices=indices, images=images)
        world.barrier()
        if world.is_main:
            if world.size > 1:
                indices, images = _gather(request.out, world.size)
            seconds = time.monotonic() - start
            _write(request, pipeline, folder, labels, images[np.argsort(indices)], seconds)
        world.barrier()
    return request.out


def _generate(
    pipeline: Pipeline, request: Request, labels: list[int], world: World
) -> tuple[np.ndarray, np.ndarray]:
    """This process's image indices and their pixels, (n, H, W, C) uint8."""
    progress = ProgressLine(request.num, 0, enabled=world.is_main)
    indices, images = [], []
    for batch in batches_of(
        request.num, request.batch_size, first=request.first, rank=world.rank, world_size=world.size
    ):
        done = min(len(indices) * world.size, request.num)
        made = pipeline.generate(
            [labels[i - request.first] for i in batch],
            request.settings,
            seed=request.seed,
            image_indices=batch,
            watch=lambda event, done=done: progress.show(done, _describe(event)),
        )
        images.append(pipeline.codec.to_uint8(made))
        indices.extend(batch)
    progress.show(request.num, "done", force=True)
    progress.close()
    config = pipeline.codec.config
    shape = (0, config.image_height, config.image_width, config.image_channels)
    return np.array(indices, dtype=np.int64), np.concatenate([np.empty(shape, np.uint8), *images])


def _gather(folder: Path, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    indices, images = [], []
    for rank in range(world_size):
        path = folder / f".part-{rank}.npz"
        with np.load(path) as part:
            indices.append(part["indices"])
            images.append(part["images"])
        path.unlink()
    return np.concatenate(indices), np.concatenate(images)


def _write(
    request: Request, pipeline: Pipeline, folder: Path, labels: list[int], images: np.ndarray, seconds: float
) -> None:
    names = pipeline.spec.class_names
    if "png" in request.output:
        for offset, image in enumerate(images):
            save_png(image, request.out / f"{request.first + offset:06d}.png")
    if "grid" in request.output:
        columns = len(set(labels)) if 1 < len(set(labels)) <= 16 else int(np.ceil(np.sqrt(len(labels))))
        turns = [names[label] if names else str(label) for label in labels[:columns]]
        named = len(labels) >= columns and labels == [labels[i % columns] for i in range(len(labels))]
        scale = max(1, 128 // images.shape[2])
        grid = to_image_grid(
            _to_float(images), columns, scale=scale, column_labels=turns if named and columns > 1 else None
        )
        grid.save(request.out / "grid.png")
    if "npz" in request.output:
        np.savez(request.out / "samples.npz", arr_0=images, arr_1=np.array(labels))
    settings = {
        "command": "sample",
        "num": request.num,
        "first": request.first,
        "labels": labels,
        "class_names": names,
        **_facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
        "batch_size": request.batch_size,
        "seconds": round(seconds, 3),
        "images_per_second": round(request.num / seconds, 4),
    }
    (request.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(
        f"{request.num} images in {seconds:.1f} s ({request.num / seconds:.2f} per second) in {request.out}"
    )


def _labels(pipeline: Pipeline, request: Request) -> list[int]:
    num_classes = pipeline.model.config.num_classes
    given = [parse_class(name, pipeline.spec.class_names, num_classes) for name in request.classes]
    cycle = given or list(range(num_classes))
    return [cycle[i % len(cycle)] for i in range(request.first, request.first + request.num)]


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
        pipeline, folder = _load(request.model, request.weights, request.precision, world)
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
            watch=lambda event: progress.show(0, _describe(event)),
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
            for index, image in enumerate(_to_float(pixels))
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
            **_facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
            "seconds": round(seconds, 3),
        }
        (request.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        print(f"{request.variants} edits in {seconds:.1f} s in {request.out}")
    return request.out


def save_png(pixels: np.ndarray, path: Path) -> None:
    """One image (H, W, 1 or 3) uint8."""
    from PIL import Image

    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def read_image(path: Path, height: int, width: int, channels: int) -> Tensor:
    """(C, H, W) in [-1, 1]: an image file, cropped and scaled as in training."""
    from PIL import Image

    from causalfusion.data.source import UnreadableImage, decode_image
    from causalfusion.data.transforms import center_crop

    try:
        pixels = decode_image(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except (UnreadableImage, OSError) as error:
        raise UserError(f"image {path} cannot be read: {error}") from None
    if channels == 1:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[..., None]
    if pixels.shape[:2] != (height, width):
        if height != width:
            raise UserError(
                f"image {path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; expected {width}x{height}"
            )
        pixels = center_crop(pixels, height)
    pixels = pixels.reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def _load(model: Path, weights: WeightsName, precision: str, world: World) -> tuple[Pipeline, Path]:
    folder = latest_model(model)
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    pipeline = Pipeline.load(folder, weights=weights, device=world.device, autocast_dtype=dtype)
    return pipeline, folder


def _facts(
    pipeline: Pipeline, folder: Path, weights: str, precision: str, seed: int, settings: SampleConfig
) -> dict[str, Any]:
    return {
        "model": str(folder),
        "images_seen": pipeline.spec.images_seen,
        "weights": weights,
        "seed": seed,
        "settings": to_dict(settings),
        "precision": precision,
        "device": str(pipeline.device),
        "versions": {
            "causalfusion": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "argv": sys.argv[1:],
    }


def _describe(event: StepEvent) -> str:
    return (
        f"AR step {event.ar_step}/{event.num_ar_steps}, "
        f"diffusion step {event.diffusion_step}/{event.num_diffusion_steps}"
    )


def _to_float(images: np.ndarray) -> Tensor:
    """(n, C, H, W) in [-1, 1] from (n, H, W, C) uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
