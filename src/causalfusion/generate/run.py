"""`causalfusion sample`: a request in, a folder of images out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causalfusion import __version__
from causalfusion.config.serialize import to_dict
from causalfusion.config.sizes import parse_size, size_text
from causalfusion.data.documents_file import JsonlDocuments
from causalfusion.documents import ImageToCome
from causalfusion.errors import UserError
from causalfusion.files import hash_of, in_use, stamp, write_whole
from causalfusion.generate.document_prompts import DocumentPrompts
from causalfusion.generate.out_folder import begin, check_room, files_of, finish, settings_there
from causalfusion.generate.output import (
    check_prompts,
    compile_for,
    facts,
    flops_of_product,
    load_pipeline,
    quantized,
    read_labels,
    say,
    uses_classes,
    warn_of_untrained_null,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.progress import BatchProgress
from causalfusion.generate.rank import check_judged, generate_best
from causalfusion.generate.read import to_float
from causalfusion.generate.request import SampleRequest
from causalfusion.generate.settings import check_settings
from causalfusion.generate.store import PngStore, Store, open_store, png_of, runs_of, write_npz
from causalfusion.machine.processes import World, join_world
from causalfusion.machine.progress import ProgressLine, seconds_of_command
from causalfusion.machine.threads import Threads
from causalfusion.pictures.compose import framed, sheet, to_image_grid, to_tiles, with_texts

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DEFAULT_IMAGES = 16
MAX_IN_GRID = 256


@dataclass(frozen=True)
class Task:
    """The class and the prompt of each image of a run; those of image i are entry i - first."""

    first: int
    labels: list[int]
    class_names: list[str]
    """The class of each image in words; "" where the model is told none."""
    prompts: list[str] | None
    sizes: Sequence[tuple[int, int]] = ()
    """(height, width) in pixels; image i has that at i modulo their number. None: that of the model."""
    documents: DocumentPrompts | None = None
    """Image i goes on from that at i modulo their number."""

    def __len__(self) -> int:
        return len(self.labels)

    def size_of(self, index: int) -> tuple[int, int] | None:
        return self.sizes[index % len(self.sizes)] if self.sizes else None

    @property
    def indices(self) -> range:
        return range(self.first, self.first + len(self))


def sample_to_folder(request: SampleRequest) -> Path:
    """Generate the images of a request into its folder; the processes of a world take batches in turn."""
    with join_world(request.device) as world, ExitStack() as stack:
        pipeline, folder = load_pipeline(request.model, request, world, request.rope_extrapolation)
        task = _task(pipeline, request)
        if request.candidates > 1:
            check_judged(pipeline, task.prompts or ())
        for at in [pipeline.at(*size) for size in task.sizes] or [pipeline]:
            check_settings(request.settings, at.model.config, at.spec.diffusion, at.grid)
        if world.is_main:
            warn_of_untrained_null(pipeline, request.settings, task.labels)
            if request.out.exists() and not request.out.is_dir():
                raise UserError(f"--out {request.out} is a file; expected a folder, or the name of a new one")
            stack.enter_context(in_use(request.out, "the folder"))
        job = _begin(pipeline, folder, request, task, world)
        compile_for(pipeline, len(job.missing), request.compile)
        seconds = _generate(pipeline, request, job, world)
        world.barrier()
        if world.is_main:
            _write_together(request, job)
            _finish(request, job, seconds)
    return request.out


@dataclass(frozen=True)
class _Job:
    """The images that are to be in the folder, and those of them that are still to be made."""

    task: Task
    settings: dict[str, Any]
    store: Store
    missing: list[int]
    """Indices of the images that are not in the folder yet."""


def _begin(pipeline: Pipeline, folder: Path, request: SampleRequest, task: Task, world: World) -> _Job:
    """Take the folder over: as it is, where a run with the same settings did not end or is continued with
    --first; else empty of what an earlier one wrote."""
    earlier = settings_there(request.out, "sample") if request.out.is_dir() else None
    identity = _identity(pipeline, folder, request)
    keep = False
    if earlier is not None and earlier.get("identity") == identity:
        first, stop = earlier["first"], earlier["first"] + earlier["num"]
        if first < task.first <= stop:  # --first goes on with what is there
            task, keep = _task(pipeline, request, range(first, max(stop, task.indices.stop))), True
        else:
            keep = not earlier.get("finished", True) and task.first == first and len(task) >= stop - first
    settings = {
        "command": "sample",
        "num": len(task),
        "first": task.first,
        "labels": task.labels,
        "class_names": pipeline.spec.class_names,
        "prompts": task.prompts,
        **({} if request.documents is None else {"documents": str(request.documents)}),
        "candidates": request.candidates,
        **facts(pipeline, folder, request),
        **({"sizes": [size_text(*size) for size in task.sizes]} if task.sizes else {}),
        "identity": identity,
        "batch_size": request.batch_size,
    }
    world.barrier()  # all have read what is there
    if world.is_main:
        check_room(request.out, "sample", list(files_of(settings)), earlier)
        begin(request.out, settings, earlier, keep)
    world.barrier()
    store = open_store(request.out, identity, task.indices, as_png="png" in request.output)
    missing = sorted(set(task.indices) - store.has())
    world.barrier()  # nobody writes before all have looked
    if world.is_main and len(missing) < len(task):
        stay = ", PNGs, which stay" if isinstance(store, PngStore) and "png" not in request.output else ""
        print(f"{len(task) - len(missing)} of {len(task)} images are there already{stay}")
    return _Job(task, settings, store, missing)


def _identity(pipeline: Pipeline, folder: Path, request: SampleRequest) -> str:
    """A short hash of all that image i depends on, beside i."""
    prompts = None if request.prompts is None else list(request.prompts)
    if request.prompts_file is not None:
        prompts = read_prompts(request.prompts_file)
    weights = folder / ("model.safetensors" if request.weights == "ema" else "raw.safetensors")
    told = [folder.resolve(), stamp(weights), to_dict(pipeline.spec), request.weights, request.precision]
    told += [request.seed, request.candidates, list(request.classes), prompts]
    told += [to_dict(pipeline.process.settled(request.settings)), *quantized(pipeline).values()]
    told += [list(request.size), request.rope_extrapolation, *pipeline.adapters]
    if request.documents is not None:
        told.append(JsonlDocuments(str(request.documents)).fingerprint())
    return hash_of([__version__, *told])


def _generate(pipeline: Pipeline, request: SampleRequest, job: _Job, world: World) -> float:
    """Generate and write this process's share of the missing images, batch by batch; the seconds it took."""
    task, start = job.task, time.monotonic()
    progress = ProgressLine(len(task), len(task) - len(job.missing), enabled=world.is_main)
    batches, threads = _batches(task, job.missing, request.batch_size), Threads()
    done = progress.first
    for size, batch in batches[world.rank :: world.size]:
        entries = [index - task.first for index in batch]
        of_size = pipeline if size is None else pipeline.at(*size)
        threads.adapt(flops_of_product(of_size, request.settings, len(batch)))
        watch = BatchProgress(progress, done, len(batch) * world.size, request.candidates)
        if task.documents is not None:
            documents = [task.documents[index % len(task.documents)] for index in batch]
            made = pipeline.draw_next(
                documents, request.settings, seed=request.seed, image_indices=batch, watch=watch
            )
        else:
            made = generate_best(
                of_size,
                [task.labels[entry] for entry in entries],
                None if task.prompts is None else [task.prompts[entry] for entry in entries],
                request.settings,
                request.candidates,
                seed=request.seed,
                image_indices=batch,
                watch=watch,
            )
        job.store.write(batch, of_size.codec.to_uint8(made))
        done = min(done + len(batch) * world.size, len(task))
    progress.show(len(task), "done", force=True)
    progress.close()
    return time.monotonic() - start


def _batches(
    task: Task, missing: Sequence[int], batch_size: int
) -> list[tuple[tuple[int, int] | None, Sequence[int]]]:
    """(size, indices of images to generate together), which have one size."""
    if len(task.sizes) <= 1:
        return [(task.size_of(0), indices) for indices in runs_of(missing, batch_size)]
    by_size: dict[tuple[int, int] | None, list[int]] = {}
    for index in missing:
        by_size.setdefault(task.size_of(index), []).append(index)
    return [
        (size, indices[start : start + batch_size])
        for size, indices in by_size.items()
        for start in range(0, len(indices), batch_size)
    ]


def _write_together(request: SampleRequest, job: _Job) -> None:
    """Write grid.png and samples.npz, as far as they are asked for, from the images on the disk."""
    task = job.task
    if "npz" in request.output:
        batches = list(runs_of(task.indices, request.batch_size))
        write_npz(request.out / "samples.npz", job.store, batches, task.labels)
    if "grid" in request.output:
        pixels = job.store.read(task.indices[:MAX_IN_GRID])
        write_whole(request.out / "grid.png", png_of(np.asarray(_draw_grid(pixels, task))))
        if len(task) > MAX_IN_GRID:
            print(f"grid.png shows the first {MAX_IN_GRID} images")
    for kind, name in (("npz", "samples.npz"), ("grid", "grid.png")):
        if kind not in request.output:  # one of an earlier command has fewer images
            (request.out / name).unlink(missing_ok=True)


def _finish(request: SampleRequest, job: _Job, seconds: float) -> None:
    """Mark the folder as finished in its settings, and print the number of images and the time."""
    total, made = seconds_of_command(seconds), len(job.missing)
    rate = made / max(seconds, 1e-9)
    figures = {
        "seconds": round(total, 3),
        "generation_seconds": round(seconds, 3),
        "images_per_second": round(rate, 4),
    }
    finish(request.out, {**job.settings, **figures})
    job.store.close()
    images = f"{made} image{'s' * (made != 1)}"
    print(f"{images} in {total:.1f} s ({rate:.2f} per second while generating) in {request.out}")


def _draw_grid(pixels: np.ndarray, task: Task) -> Picture:
    """The first images in a grid: beneath each its prompt, or above each column its class."""
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


def _task(pipeline: Pipeline, request: SampleRequest, indices: range | None = None) -> Task:
    count, prompts = DEFAULT_IMAGES, request.prompts
    if request.prompts_file is not None:
        prompts = read_prompts(request.prompts_file)
        count = len(prompts)
    elif prompts is not None and len(prompts) > 2 and not any(" " in prompt for prompt in prompts):
        say(f"note: {len(prompts)} prompts of one word each; put one of several words between quotes")
    documents = None
    if request.documents is not None:
        documents = DocumentPrompts(request.documents, pipeline, ImageToCome(), 0)
        count = len(documents)
    indices = indices or range(request.first, request.first + (request.images or count))
    task = task_of(pipeline, request.classes, prompts, indices)
    if documents is not None:
        null = pipeline.model.config.null_label
        titles = [documents.title(i % len(documents)) for i in indices]
        unnamed = {"labels": [null] * len(task), "class_names": [""] * len(task)}
        return replace(task, **unnamed, prompts=titles, documents=documents)
    return replace(task, sizes=[parse_size(text, "--size") for text in request.size])


def task_of(
    pipeline: Pipeline, classes: Sequence[str], prompts: Sequence[str] | None, indices: range
) -> Task:
    """Image i gets the class and the prompt i modulo their numbers. Without either: all classes in turn, of a
    model that uses classes; else nothing, which is the null label and the empty prompt."""
    model, names = pipeline.model.config, pipeline.spec.class_names
    if prompts is not None:
        check_prompts(pipeline, prompts)
    labels = read_labels(pipeline, classes)
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
