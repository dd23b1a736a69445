"""Data sets: images with labels and captions, or documents, by index."""

from __future__ import annotations

import os

from causalfusion.config import DataConfig
from causalfusion.data.columns import Columns
from causalfusion.data.document_source import DocumentSource
from causalfusion.data.guess import combine_paths, guess_source
from causalfusion.data.names import find_path
from causalfusion.data.remote import fetched, is_url
from causalfusion.data.source import Example, ImageSource, UnreadableImage
from causalfusion.errors import UserError

__all__ = [
    "DocumentSource",
    "Example",
    "ImageSource",
    "UnreadableImage",
    "combine_paths",
    "guess_source",
    "open_documents",
    "open_source",
]

WITH_SPLITS = ("shapes", "in_context", "datasets")
"""Sources for which `data.split` says something."""


def open_source(config: DataConfig) -> ImageSource:
    """The data set that the settings name. Raises UserError if it is missing, damaged or of another kind."""
    _check_split(config)
    if config.has_documents:
        raise UserError(
            f"data.source is {config.source}, documents of texts and images; expected a source of images, as "
            "only train takes documents"
        )
    source = _open(config)
    if config.captions == "class_names":
        from causalfusion.data.class_captions import ClassCaptions

        return ClassCaptions(source, os.path.expanduser(config.class_words))
    return source


def _open(config: DataConfig) -> ImageSource:
    if config.source == "digits":
        from causalfusion.data.digits import Digits

        return Digits()
    if config.source == "shapes":
        from causalfusion.data.shapes import Shapes

        fit = config.fit() if config.image_size else None
        return Shapes(config.split, fit=fit, object_shares=config.object_shares)
    path = find_path(os.path.expanduser(config.path))
    if config.source == "datasets":
        from causalfusion.data.hugging_face import HubImages

        return HubImages(
            path, _columns(config), subset=config.subset, split=config.split, streaming=config.streaming
        )
    if is_url(path):
        path = fetched(path, beside=("classes.txt",) if config.source == "webdataset" else ())
    if config.source == "folder":
        from causalfusion.data.folder import ImageFolder

        return ImageFolder(path)
    if config.source == "webdataset":
        from causalfusion.data.webdataset import WebDataset

        return WebDataset(path, config.image_suffix)
    if config.source == "jsonl":
        from causalfusion.data.jsonl import JsonlImages

        return JsonlImages(path)
    if config.source == "parquet":
        from causalfusion.data.parquet import ParquetImages

        return ParquetImages(path, _columns(config))
    from causalfusion.data.npz import NpzImages

    return NpzImages(path)


def _columns(config: DataConfig) -> Columns:
    return Columns(config.image_column, config.label_column, config.caption_column)


def open_documents(config: DataConfig, seed: int = 0) -> DocumentSource:
    """The documents that the settings name; `seed`: of those that are made up. Raises UserError if they are
    missing, damaged or of another kind."""
    _check_split(config)
    if config.source == "in_context":
        from causalfusion.data.in_context import InContext

        fit = config.fit() if config.image_size else None
        return InContext(config.split, task=config.task, examples=config.examples, seed=seed, fit=fit)
    from causalfusion.data.documents_file import JsonlDocuments

    return JsonlDocuments(find_path(os.path.expanduser(config.path)))


def _check_split(config: DataConfig) -> None:
    if config.split != "train" and config.source not in WITH_SPLITS:
        raise UserError(
            f"data.split is {config.split!r}; only the sources {', '.join(WITH_SPLITS)} have splits, "
            f"{config.source} has none: leave it out"
        )
