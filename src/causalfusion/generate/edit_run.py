"""`causalfusion edit`: an image and a region in, a folder of edits out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from causalfusion.config.sizes import Fit, parse_size
from causalfusion.errors import UserError
from causalfusion.files import in_use
from causalfusion.generate.layout import tokens_of_mask
from causalfusion.generate.out_folder import begin, check_room, files_of, finish, settings_there
from causalfusion.generate.output import (
    check_prompts,
    facts,
    load_pipeline,
    read_labels,
    save_png,
    say,
    warn_of_untrained_null,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.progress import BatchProgress
from causalfusion.generate.rank import best_of
from causalfusion.generate.read import read_fitted, to_float
from causalfusion.generate.regions import Original, read_mask, region_mask
from causalfusion.generate.request import EditRequest
from causalfusion.generate.settings import fit_ar_steps, warn_of_unused
from causalfusion.machine.processes import join_world
from causalfusion.machine.progress import ProgressLine, seconds_of_command
from causalfusion.machine.threads import Threads
from causalfusion.pictures.compose import Edit, below, edit_sheet, framed, paragraph

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SHOWN = 8
"""Largest number of edits on the sheet."""


@dataclass(frozen=True)
class _Task:
    """The image, the region and the condition of the edits."""

    original: Tensor
    """(C, H, W) in [-1, 1]."""
    mask: Tensor
    """(H, W), True where pixels may change."""
    label: int
    """The class; the null label where none was given."""
    prompts: list[str] | None
    """The prompt, alone in a list."""


def edit_to_folder(image: Path, request: EditRequest) -> Path:
    """Write edits of an image into the folder of the request, which is returned."""
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("edit runs in one process; start it without torchrun")
        pipeline, folder = load_pipeline(request.model, request, world, request.rope_extrapolation)
        Threads().adapt()
        task = _open_task(pipeline, image, request)
        pipeline = pipeline.at(*task.mask.shape)
        request = _fitted(request, task, pipeline)
        warn_of_untrained_null(pipeline, request.settings, [task.label])
        warn_of_unused(request.settings, pipeline.spec.diffusion)
        settings = {
            "command": "edit",
            "image": str(image),
            "mask": str(request.mask) if request.mask else None,
            "region": request.region,
            "class": None if request.class_name is None else _name(pipeline, task.label),
            "label": task.label,
            "prompt": request.prompt,
            "variants": request.variants,
            "candidates": request.candidates,
            "strength": request.strength,
            "paste": request.paste,
            **facts(pipeline, folder, request),
        }
        earlier = settings_there(request.out, "edit") if request.out.is_dir() else None
        check_room(request.out, "edit", files_of(settings), earlier)
        start = time.monotonic()
        edited = _edit(pipeline, request, task)
        pixels = pipeline.codec.to_uint8(edited)
        before = pipeline.codec.to_uint8(task.original[None])
        mask = task.mask.numpy()
        if request.paste:  # exactly the input's pixels, whatever rounding the way through floats had
            pixels = np.where(mask[None, :, :, None], pixels, before)
        read_as = pipeline.caption(to_float(pixels[:SHOWN])) if pipeline.describes else None
        with in_use(request.out, "the folder"):
            begin(request.out, settings, earlier, keep=False)
            for index, edit in enumerate(pixels):
                save_png(edit, request.out / f"edited-{index:02d}.png")
            save_png(before[0], request.out / "original.png")
            save_png(mask[:, :, None].astype(np.uint8) * 255, request.out / "mask.png")
            sheet = _draw_sheet(task, image.name, _asked(request, settings["class"]), pixels, read_as)
            save_png(np.asarray(sheet), request.out / "sheet.png")
            seconds = seconds_of_command(time.monotonic() - start)
            finish(request.out, {**settings, "read_as": read_as, "seconds": round(seconds, 3)})
        many = "s" * (request.variants > 1)
        say(f"{request.variants} edit{many} in {seconds:.1f} s in {request.out}")
    return request.out


def _fitted(request: EditRequest, task: _Task, pipeline: Pipeline) -> EditRequest:
    """The request with at most as many AR steps as tokens change, if their number is the model's own, which
    is for whole images."""
    settings, recommended = request.settings, pipeline.sampling
    if recommended is None or any(
        getattr(settings, name) != getattr(recommended, name) for name in ("num_ar_steps", "sizes")
    ):
        return request
    changed = int(tokens_of_mask(task.mask, *pipeline.grid).sum())
    fitted = fit_ar_steps(settings, changed)
    if fitted is not settings:
        steps, before = fitted.num_ar_steps, len(settings.sizes) or settings.num_ar_steps
        other = f"instead of {before}" if steps != before else "of other sizes than a whole image's"
        say(f"{changed} tokens change, in {steps} AR steps {other}")
    return replace(request, settings=fitted)


def _open_task(pipeline: Pipeline, image: Path, request: EditRequest) -> _Task:
    """The image and the region, read; the class and the prompt, checked."""
    label = pipeline.model.config.null_label
    if request.class_name is not None:
        (label,) = read_labels(pipeline, [request.class_name])
    prompts = None if request.prompt is None else [request.prompt]
    if prompts is not None:
        check_prompts(pipeline, prompts)
    fit = _fit(pipeline, request.size)
    original = read_fitted(image, fit, pipeline.codec.config.image_channels)
    height, width = original.shape[1:]
    if request.mask is None:
        mask = region_mask(request.region, height, width)
    else:
        mask = read_mask(request.mask, height, width, Original.of(image), fit)
    return _Task(original, mask, label, prompts)


def _fit(pipeline: Pipeline, size: str) -> Fit:
    """How the image is brought to size. One that keeps its shape has at most the area of the images of
    training."""
    codec = pipeline.codec.config
    if size == "native" or (codec.max_area and not size):
        area = codec.max_area or codec.image_height * codec.image_width
        return Fit(max_area=area, cell=pipeline.codec.cell)
    at = pipeline.at(*parse_size(size, "--size")) if size else pipeline
    return Fit(at.codec.config.image_height, at.codec.config.image_width)


def _edit(pipeline: Pipeline, request: EditRequest, task: _Task) -> Tensor:
    """(variants, C, H, W), each the best of its candidates."""
    progress = ProgressLine(request.variants, 0, what="edits")
    watch = BatchProgress(progress, 0, request.variants, request.candidates)

    def draw(seed: int) -> Tensor:
        return pipeline.edit(
            task.original[None],
            task.mask,
            [task.label],
            request.settings,
            prompts=task.prompts,
            seed=seed,
            variants=request.variants,
            strength=request.strength,
            paste=request.paste,
            watch=watch,
        )

    captions = (task.prompts or [""]) * request.variants
    edited = best_of(draw, pipeline, captions, request.candidates, request.seed)
    progress.close()
    return edited


def _name(pipeline: Pipeline, label: int) -> str:
    return pipeline.spec.class_names[label] if pipeline.spec.class_names else str(label)


def _asked(request: EditRequest, class_name: str | None) -> str:
    """The class, the prompt and the strength of a request in words, for a picture."""
    asked = [f"class: {class_name}"] * (class_name is not None)
    asked += [f"prompt: {request.prompt}"] * bool(request.prompt)
    return ", ".join(asked + [f"strength: {request.strength:g}"] * (request.strength < 1))


def _draw_sheet(
    task: _Task, image_name: str, asked: str, pixels: np.ndarray, read_as: list[str] | None
) -> Picture:
    """The class and the prompt asked for, and below them the original beside the first edits (n, H, W, C).
    Below each edit by a model with text, the caption that the model gives it, which may be another one."""
    edits = [
        Edit(f"edit {index:02d}", task.mask, image[None], [""])
        for index, image in enumerate(to_float(pixels)[:SHOWN])
    ]
    scale = max(1, 192 // task.original.shape[1])
    notes = None if read_as is None else [f"read by the model as: {text}" for text in read_as]
    picture = edit_sheet(task.original[None], [image_name], edits, scale=scale, notes=notes)
    heading = paragraph(asked, picture.width - 32, 20)
    return below([framed(heading), picture], gap=-16)
