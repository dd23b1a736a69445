"""`causalfusion sample`: a request in, a folder of images out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from causalfusion.config import SampleConfig
from causalfusion.distributed import World, join_world
from causalfusion.errors import UserError
from causalfusion.generate.layout import batches_of
from causalfusion.generate.output import (
    CompileChoice,
    check_prompts,
    compile_for,
    describe,
    facts,
    load_pipeline,
    read_label,
    save_png,
    to_float,
    uses_classes,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.rank import generate_best
from causalfusion.generate.settings import check_settings
from causalfusion.pictures import framed, sheet, to_image_grid, to_tiles, with_texts
from causalfusion.progress import ProgressLine
from causalfusion.saved import WeightsName

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DEFAULT_IMAGES = 16
MAX_IN_GRID = 256


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `sample` was asked for."""

    model: Path
    out: Path
    num: int | None
    """None: one for each line of the prompts file, or 16."""
    classes: list[str]
    prompts: list[str] | None
    prompts_file: Path | None
    candidates: int
    first: int
    batch_size: int
    seed: int
    weights: WeightsName
    output: Sequence[str]
    precision: str
    compile: CompileChoice
    device: str
    settings: SampleConfig

    def __post_init__(self) -> None:
        positive = {"--images": self.num, "--batch-size": self.batch_size, "--candidates": self.candidates}
        for flag, value in positive.items():
            if value is not None and value < 1:
                raise UserError(f"{flag} is {value}; expected at least 1")
        if self.first < 0:
            raise UserError(f"--first is {self.first}; expected 0 or more")
        if self.prompts == []:
            raise UserError("--prompt has no value; expected one or more prompts")
        if self.candidates > 1 and self.prompts is None and self.prompts_file is None:
            raise UserError(f"--candidates is {self.candidates}; expected --prompt with it, or 1")
        if self.prompts is not None and self.prompts_file is not None:
            raise UserError("--prompt and --prompts-file are both given; expected one of them")


@dataclass(frozen=True)
class Task:
    """What each image of a run is to show; image i is entry i - first."""

    first: int
    labels: list[int]
    class_names: list[str]
    """The class of each in words; "" where the model is told none."""
    prompts: list[str] | None

    def __len__(self) -> int:
        return len(self.labels)


def sample_to_folder(request: Request) -> Path:
    """Generate the images of a request; the processes of a world take batches in turn."""
    with join_world(request.device) as world:
        pipeline, folder = load_pipeline(request.model, request.weights, request.precision, world)
        task = _task(pipeline, request)
        compile_for(pipeline, len(task), request.compile)
        check_settings(request.settings, pipeline.model.config, pipeline.spec.diffusion)
        request.out.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        images = _generate(pipeline, request, task, world)
        if world.size > 1:
            images = _gather(images, request, world)
        if world.is_main:
            seconds = time.monotonic() - start
            _write_together(request, task, images)
            _write_settings(request, pipeline, folder, task, seconds)
    return request.out


def _generate(pipeline: Pipeline, request: Request, task: Task, world: World) -> dict[int, np.ndarray]:
    """This process's images (H, W, C) uint8 by index; PNGs are written batch by batch."""
    progress = ProgressLine(len(task), 0, enabled=world.is_main)
    images: dict[int, np.ndarray] = {}
    for batch in batches_of(
        len(task), request.batch_size, first=task.first, rank=world.rank, world_size=world.size
    ):
        done = min(len(images) * world.size, len(task))
        entries = slice(batch.start - task.first, batch.stop - task.first)
        made = generate_best(
            pipeline,
            task.labels[entries],
            None if task.prompts is None else task.prompts[entries],
            request.settings,
            request.candidates,
            seed=request.seed,
            image_indices=batch,
            watch=lambda event, done=done: progress.show(done, describe(event)),
        )
        for index, pixels in zip(batch, pipeline.codec.to_uint8(made), strict=True):
            images[index] = pixels
            if "png" in request.output:
                save_png(pixels, request.out / f"{index:06d}.png")
    progress.show(len(task), "done", force=True)
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


def _write_together(request: Request, task: Task, images: dict[int, np.ndarray]) -> None:
    """grid.png and samples.npz."""
    pixels = np.stack([images[index] for index in sorted(images)])
    if "npz" in request.output:
        np.savez(request.out / "samples.npz", arr_0=pixels, arr_1=np.array(task.labels))
    if "grid" not in request.output:
        return
    _draw_grid(pixels[:MAX_IN_GRID], task).save(request.out / "grid.png")
    if len(task) > MAX_IN_GRID:
        print(f"grid.png shows the first {MAX_IN_GRID} images")


def _draw_grid(pixels: np.ndarray, task: Task) -> Picture:
    """The first images, what they are to show above their column, or beneath each where there are prompts."""
    shown = list(zip(task.class_names, task.prompts or [""] * len(task), strict=True))[: len(pixels)]
    different = len(set(shown))
    columns = different if 1 < different <= 16 else math.ceil(math.sqrt(len(shown)))
    if task.prompts is not None:
        texts = [f"{prompt} ({name})" if name else prompt for name, prompt in shown]
        tiles = to_tiles(to_float(pixels), max(1, 176 // pixels.shape[2]))
        return framed(sheet(with_texts(tiles, texts), columns), 8)
    named = columns > 1 and any(task.class_names)
    in_turn = named and shown == [shown[i % columns] for i in range(len(shown))]
    return to_image_grid(
        to_float(pixels),
        columns,
        scale=max(1, 128 // pixels.shape[2]),
        column_labels=[name for name, _ in shown[:columns]] if in_turn else None,
    )


def _write_settings(request: Request, pipeline: Pipeline, folder: Path, task: Task, seconds: float) -> None:
    settings = {
        "command": "sample",
        "num": len(task),
        "first": task.first,
        "labels": task.labels,
        "class_names": pipeline.spec.class_names,
        "prompts": task.prompts,
        "candidates": request.candidates,
        **facts(pipeline, folder, request.weights, request.precision, request.seed, request.settings),
        "batch_size": request.batch_size,
        "seconds": round(seconds, 3),
        "images_per_second": round(len(task) / seconds, 4),
    }
    (request.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    rate = len(task) / seconds
    print(f"{len(task)} images in {seconds:.1f} s ({rate:.2f} per second) in {request.out}")


def _task(pipeline: Pipeline, request: Request) -> Task:
    count, prompts = DEFAULT_IMAGES, request.prompts
    if request.prompts_file is not None:
        prompts = read_prompts(request.prompts_file)
        count = len(prompts)
    indices = range(request.first, request.first + (request.num or count))
    return task_of(pipeline, request.classes, prompts, indices)


def task_of(
    pipeline: Pipeline, classes: Sequence[str], prompts: Sequence[str] | None, indices: range
) -> Task:
    """Image i gets the class and the prompt i modulo their numbers. Without either: all classes in turn, of a
    model that uses classes; else nothing, which is the null label and the empty prompt."""
    model, names = pipeline.model.config, pipeline.spec.class_names
    if prompts is not None:
        check_prompts(pipeline, prompts)
    labels = [read_label(pipeline, name) for name in classes]
    if not labels:
        unsaid = prompts is not None or not uses_classes(pipeline)
        labels = [model.null_label] if unsaid else list(range(model.num_classes))
    of_each = [labels[i % len(labels)] for i in indices]
    in_words = ["" if k == model.null_label else names[k] if names else str(k) for k in of_each]
    in_turn = None if prompts is None else [prompts[i % len(prompts)] for i in indices]
    return Task(indices.start, of_each, in_words, in_turn)


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 file, a prompt each; blank ones at its end are left out, others refused."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); convert it") from None
    prompts = [line.strip() for line in lines]
    if prompts == [""]:
        raise UserError(f"{path} has no prompts; expected one on each line")
    if "" in prompts:
        raise UserError(f"line {prompts.index('') + 1} of {path} is empty; expected a prompt on each line")
    return prompts
