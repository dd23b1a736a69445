"""Pictures during training: a grid of samples by class, or images drawn for held-out captions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.documents import Document, ImageToCome, Text
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.pictures.compose import below, framed, sheet, to_image_grid, to_tiles, with_texts

MAX_CLASSES = 16
ROWS = 4
CAPTIONS = 12
SIZES = 3
"""Most sizes of images in a grid of samples."""


def save_grid(
    pipelines: Sequence[Pipeline],
    config: SampleConfig,
    captions: list[list[int]],
    documents: list[list[str | Tensor]],
    file: Path | None,
) -> None:
    """Draw samples with the settings of the run and write them to a PNG file, a part for each pipeline, which
    are those of several sizes; without a file, only compute: of a sharded model, all processes have to.
    `captions`: token ids; empty for a model without text or one of `documents`, which are the beginnings of
    some."""
    pictures, count = [], len(pipelines)
    for number, pipeline in enumerate(pipelines):
        if documents:
            pictures.append(_of_documents(pipeline, config, documents))
        elif captions:
            pictures.append(_of_captions(pipeline, config, captions[number::count] or captions[:1]))
        else:
            pictures.append(_of_classes(pipeline, config, ROWS // count + (number < ROWS % count)))
    if file is not None:
        picture = below(pictures) if count > 1 else pictures[0]
        write_whole(file, lambda stream: picture.save(stream, "PNG"))


def _of_classes(pipeline: Pipeline, config: SampleConfig, rows: int):
    """A column for each class, or for each of some spread evenly over many."""
    names = pipeline.spec.class_names
    count = min(max(len(names), 1), MAX_CLASSES)
    columns = [k * max(len(names), 1) // count for k in range(count)]
    if len(columns) == 1:
        columns *= ROWS
    images = pipeline.generate(columns * rows, config)
    labels = [names[k] for k in columns] if len(names) > 1 else None
    return to_image_grid(images, len(columns), scale=max(1, 96 // images.shape[-1]), column_labels=labels)


@torch.no_grad()
def _of_captions(pipeline: Pipeline, config: SampleConfig, captions: list[list[int]]):
    """Each caption beneath the image that is drawn for it."""
    documents: list[Document] = [[Text(tuple(ids)), ImageToCome()] for ids in captions]
    labels = pipeline.null_labels(len(captions))
    indices = range(len(captions))
    tokens = pipeline.generate_after(labels, documents, None, config, image_indices=indices)
    images = pipeline.codec.decode_tokens(tokens)
    tiles = to_tiles(images, max(1, 176 // images.shape[-1]))
    texts = [pipeline.with_text().decode(ids) for ids in captions]
    return framed(sheet(with_texts(tiles, texts), 4), 8)


@torch.no_grad()
def _of_documents(pipeline: Pipeline, config: SampleConfig, documents: list[list[str | Tensor]]):
    """A row for each document: its images, each over the text before it, then the one that is drawn."""
    drawn = pipeline.draw_next(documents, config).cpu()
    columns = 1 + max(sum(not isinstance(e, str) for e in document) for document in documents)
    images, texts = list[Tensor](), list[str]()
    for document, image in zip(documents, drawn, strict=True):
        missing, before = columns - 1 - sum(not isinstance(e, str) for e in document), ""
        images += [torch.ones_like(image)] * missing
        texts += [""] * missing
        for element in [*document, image]:
            if isinstance(element, str):
                before = element
            else:
                images.append(element)
                texts.append(f"{before} (drawn)".strip() if element is image else before)
                before = ""
    tiles = to_tiles(torch.stack(images), max(1, 96 // drawn.shape[-1]))
    return framed(sheet(with_texts(tiles, texts), columns), 8)


@dataclass
class Periodic:
    """Work that is due every so many minutes, and takes at most a tenth of the time."""

    minutes: float
    """0: never."""
    last: float
    """`time.monotonic()` of the last time, or of the start."""
    seconds: float = 0.0
    """Duration of the last time."""

    def due(self) -> bool:
        wait = max(60 * self.minutes, 9 * self.seconds)
        return self.minutes > 0 and time.monotonic() - self.last >= wait

    def done(self, begin: float) -> None:
        """It was done, from `begin` until now."""
        self.last = time.monotonic()
        self.seconds = self.last - begin
