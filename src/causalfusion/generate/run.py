"""`causalfusion sample`: a request in, a folder of images out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from causalfusion.config import SampleConfig
from causalfusion.distributed import World, join_world
from causalfusion.errors import UserError
from causalfusion.generate.layout import batches_of
from causalfusion.generate.output import describe, facts, load_pipeline, save_png, to_float
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import check_settings, parse_class
from causalfusion.pictures import to_image_grid
from causalfusion.progress import ProgressLine
from causalfusion.saved import WeightsName

MAX_IN_GRID = 256


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
        pipeline, folder = load_pipeline(request.model, request.weights, request.precision, world)
        labels = _labels(pipeline, request)
        check_settings(request.settings, pipeline.model.config, pipeline.spec.diffusion)
        request.out.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        images = _generate(pipeline, request, labels, world)
        if world.size > 1:
            images = _gather(images, request, world)
        if world.is_main:
            seconds = time.monotonic() - start
            _write_together(request, pipeline, labels, images)
            _write_settings(request, pipeline, folder, labels, seconds)
    return request.out


def _generate(pipeline: Pipeline, request: Request, labels: list[int], world: World) -> dict[int, np.ndarray]:
    """This process's images (H, W, C) uint8 by index; PNGs are written batch by batch."""
    progress = ProgressLine(request.num, 0, enabled=world.is_main)
    images: dict[int, np.ndarray] = {}
    for batch in batches_of(
        request.num, request.batch_size, first=request.first, rank=world.rank, world_size=world.size
    ):
        done = min(len(images) * world.size, request.num)
        made = pipeline.generate(
            [labels[i - request.first] for i in batch],
            request.settings,
            seed=request.seed,
            image_indices=batch,
            watch=lambda event, done=done: progress.show(done, describe(event)),
        )
        for index, pixels in zip(batch, pipeline.codec.to_uint8(made), strict=True):
            images[index] = pixels
            if "png" in request.output:
                save_png(pixels, request.out / f"{index:06d}.png")
    progress.show(request.num, "done", force=True)
    progress.close()
    return images


def _gather(images: dict[int, np.ndarray], request: Request, world: World) -> dict[int, np.ndarray]:
    """All processes' images, on the main one, through files in the output folder."""
    np.savez(
        request.out / f".part-{world.rank}.npz",
        indices=np.array(list(images), dtype=np.int64),
        images=np.array(list(images.values()), dtype=np.uint8),
    )
    world.barrier()
    if not world.is_main:
        return images
    for rank in range(world.size):
        path = request.out / f".part-{rank}.npz"
        with np.load(path) as part:
            images |= dict(zip(part["indices"].tolist(), part["images"], strict=True))
        path.unlink()
    return images


def _write_together(
    request: Request, pipeline: Pipeline, labels: list[int], images: dict[int, np.ndarray]
) -> None:
    """grid.png and samples.npz."""
    pixels = np.stack([images[index] for index in sorted(images)])
    if "npz" in request.output:
        np.savez(request.out / "samples.npz", arr_0=pixels, arr_1=np.array(labels))
    if "grid" not in request.output:
        return
    shown = labels[:MAX_IN_GRID]
    names = pipeline.spec.class_names or [str(label) for label in range(pipeline.model.config.num_classes)]
    different = len(set(shown))
    columns = different if 1 < different <= 16 else math.ceil(math.sqrt(len(shown)))
    in_turn = columns > 1 and shown == [shown[i % columns] for i in range(len(shown))]
    grid = to_image_grid(
        to_float(pixels[:MAX_IN_GRID]),
        columns,
        scale=max(1, 128 // pixels.shape[2]),
        column_labels=[names[label] for label in shown[:columns]] if in_turn else None,
    )
    grid.save(request.out / "grid.png")
    if len(shown) < len(labels):
        print(f"grid.png shows the first {len(shown)} images")


def _write_settings(
    request: Request, pipeline: Pipeline, folder: Path, labels: list[int], seconds: float
) -> None:
    settings = {
        "command": "sample",
        "num": request.num,
        "first": request.first,
        "labels": labels,
        "class_names": pipeline.spec.class_names,
        **facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
        "batch_size": request.batch_size,
        "seconds": round(seconds, 3),
        "images_per_second": round(request.num / seconds, 4),
    }
    (request.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    rate = request.num / seconds
    print(f"{request.num} images in {seconds:.1f} s ({rate:.2f} per second) in {request.out}")


def _labels(pipeline: Pipeline, request: Request) -> list[int]:
    num_classes = pipeline.model.config.num_classes
    given = [parse_class(name, pipeline.spec.class_names, num_classes) for name in request.classes]
    cycle = given or list(range(num_classes))
    return [cycle[i % len(cycle)] for i in range(request.first, request.first + request.num)]
