"""`causalfusion caption`: images in, a line of text for each out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.data.names import SUFFIXES, is_hidden, is_image
from causalfusion.data.written import pictures_beside
from causalfusion.errors import UserError, printable
from causalfusion.files import write_whole
from causalfusion.generate.layout import batches_of
from causalfusion.generate.output import load_pipeline, one_line, say
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import read_image
from causalfusion.generate.request import CaptionRequest
from causalfusion.machine.processes import join_world
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.threads import Threads


def caption_images(paths: Sequence[Path], request: CaptionRequest) -> list[str]:
    """The captions of image files and of the images in folders, printed as they come, and written to the
    request's `out` when all are there."""
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("caption runs in one process; start it without torchrun")
        files = image_files(paths)
        pipeline, _ = load_pipeline(request.model, request, world)
        pipeline.with_text()
        Threads().adapt()
        for file in files if len(files) > request.batch_size else ():
            read_model_image(pipeline, file)  # a damaged one is refused before the first is captioned
        write = _stream if files == list(paths) and len(files) == 1 else _in_batches
        captions = write(pipeline, request, files)
        if request.out is not None:
            lines = [
                json.dumps({"image": str(file), "caption": text}, ensure_ascii=False)
                for file, text in zip(files, captions, strict=True)
            ]
            write_whole(request.out, "\n".join(lines) + "\n")
    return captions


def _stream(pipeline: Pipeline, request: CaptionRequest, files: Sequence[Path]) -> list[str]:
    """One caption, printed while it is written."""
    stream = pipeline.with_text().decode_stream()
    image = read_model_image(pipeline, files[0])
    try:
        return pipeline.caption(
            image[None],
            request.write,
            seed=request.seed,
            watch=lambda row, token: say(one_line(stream.feed(token)), end=""),
        )
    finally:  # when stopped, too
        say(one_line(stream.flush()))


def _in_batches(pipeline: Pipeline, request: CaptionRequest, files: Sequence[Path]) -> list[str]:
    """The captions, printed batch by batch; on a terminal they themselves are the progress display."""
    progress = ProgressLine(len(files), 0, enabled=not sys.stdout.isatty())
    captions: list[str] = []
    for batch in batches_of(len(files), request.batch_size):
        images = torch.stack([read_model_image(pipeline, files[index]) for index in batch])
        progress.show(batch.start, "captions")
        texts = pipeline.caption(images, request.write, seed=request.seed, image_indices=batch)
        for index, text in zip(batch, texts, strict=True):
            say(f"{printable(files[index])}: {one_line(text)}")
        captions += texts
    progress.show(len(files), "done", force=True)
    progress.close()
    return captions


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and the images in the folders among them and in folders within those,
    sorted. Raises UserError for a file that is missing, or a folder without images."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = images_below(path)
        if not inside:
            raise UserError(f"there are no images in {path}; expected files ending in {', '.join(SUFFIXES)}")
        files += inside
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(f"image {missing[0]} does not exist")
    return files


def images_below(folder: Path) -> list[Path]:
    """The images of a folder and of the folders in it, sorted; without hidden ones, and without the pictures
    for people that the commands draw beside their images."""
    found: list[Path] = []
    for base, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not is_hidden(name)]
        beside = pictures_beside(Path(base))
        found += [Path(base, name) for name in names if is_image(name) and name not in beside]
    return sorted(found)


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def read_model_image(pipeline: Pipeline, file: Path) -> Tensor:
    """(C, H, W) in [-1, 1], cropped and scaled to the model's size."""
    size = pipeline.codec.config
    return read_image(file, size.image_height, size.image_width, size.image_channels)
