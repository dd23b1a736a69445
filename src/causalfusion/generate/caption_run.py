"""`causalfusion caption`: images in, a line of text for each out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.config import WriteConfig
from causalfusion.data.names import SUFFIXES, is_hidden, is_image
from causalfusion.data.written import pictures_beside
from causalfusion.errors import UserError
from causalfusion.files import write_whole
from causalfusion.generate.layout import batches_of
from causalfusion.generate.output import load_pipeline, one_line, say
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import read_image
from causalfusion.machine.processes import join_world
from causalfusion.machine.progress import ProgressLine
from causalfusion.saved.folder import WeightsName


@dataclass(frozen=True, kw_only=True)
class CaptionRequest:
    """What `caption` was asked for."""

    images: list[Path]
    model: Path
    out: Path | None
    batch_size: int
    seed: int
    weights: WeightsName
    precision: str
    device: str
    write: WriteConfig
    autoencoder: str = ""
    """Where the model's autoencoder lies now, if neither in its folder nor where it was in training."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}; expected at least 1")
        if self.out is not None and (self.out.suffix != ".jsonl" or self.out.is_dir()):
            raise UserError(f"--out is {self.out}; expected a file that ends in .jsonl")


def caption_images(request: CaptionRequest) -> list[str]:
    """Print the captions, and write them to `out` when all are there."""
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("caption runs in one process; start it without torchrun")
        files = image_files(request.images)
        pipeline, _ = load_pipeline(
            request.model, request.weights, request.precision, world, request.autoencoder
        )
        pipeline.with_text()
        for file in files if len(files) > request.batch_size else ():
            read_model_image(pipeline, file)  # a damaged one is refused before the first is captioned
        write = _stream if files == request.images and len(files) == 1 else _in_batches
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
    """The captions, printed batch by batch. On a terminal the lines themselves tell how far it is."""
    progress = ProgressLine(len(files), 0, enabled=not sys.stdout.isatty())
    captions: list[str] = []
    for batch in batches_of(len(files), request.batch_size):
        images = torch.stack([read_model_image(pipeline, files[index]) for index in batch])
        progress.show(batch.start, "captions")
        texts = pipeline.caption(
            images,
            request.write,
            seed=request.seed,
            image_indices=batch,
        )
        for index, text in zip(batch, texts, strict=True):
            say(f"{files[index]}: {one_line(text)}")
        captions += texts
    progress.show(len(files), "done", force=True)
    progress.close()
    return captions


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and the images in the folders among them, sorted, those deeper in too."""
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
    """The images of a folder and of those in it, sorted; without hidden ones, and without the pictures that
    these commands draw for people beside their images."""
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
