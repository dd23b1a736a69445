"""Settings that follow from the data and the machine, for a training that is begun with a path alone.

They lie beneath recipes and options: whatever a user gives counts. A run that has begun keeps those that it
began with.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalfusion.config import RunConfig, TrainConfig
from causalfusion.config.recipes import merge
from causalfusion.config.serialize import flat, to_dict
from causalfusion.data import DocumentSource, ImageSource, UnreadableImage, open_documents, open_source
from causalfusion.data.document_source import DocumentImages, documents_with_images
from causalfusion.errors import UserError, printable
from causalfusion.estimate.devices import faster_in_bfloat16
from causalfusion.saved.folder import checkpoints_of, load_spec, read_latest
from causalfusion.train.resume import LATER, stored_settings

LOOKED_AT = 24
"""Images that are opened to learn their sizes."""
MINUTES = {"cpu": 10.0, "cuda": 60.0}
SIDE = {"cpu": 32, "cuda": 64}
GRID = {"cpu": 8, "cuda": 16}
"""Image tokens on a side."""
MODEL = {"cpu": {"hidden_size": 256, "depth": 6, "num_heads": 4}, "cuda": {"hidden_size": 384, "depth": 12}}
SMALL_MODEL = {"hidden_size": 128, "depth": 6, "num_heads": 4}
"""For grey images of at most 16 pixels, on a CPU."""
BATCH = {"cpu": 32, "cuda": 256}
DECAY = {"cpu": 0.25, "cuda": 0.8}
"""In a short training, one AR step, by which images are sampled unless told otherwise, gets most of it."""
MANY_IMAGES = 1_000_000_000
"""More than is reached: the training time ends the run."""


@dataclass(frozen=True)
class DataSummary:
    """Facts of the data from which the settings follow."""

    source: str
    num_images: int
    num_classes: int
    has_captions: bool
    sides: list[int] = field(default_factory=list)
    """Shorter sides of some images, in pixels."""
    one_size: bool = True
    """Those images are square, and all of one size."""
    in_colour: bool = True
    examples: str = "images"
    """The examples in words."""
    caption_words: int = 0
    """Words of the longest caption of some images."""

    def describe(self) -> str:
        low, high = min(self.sides), max(self.sides)
        sides = f"{low}" if low == high else f"{low} to {high}"
        size = f"{low}x{low}" if self.one_size else f"{sides} pixels and more"
        classes = f" in {self.num_classes} classes" if self.num_classes > 1 else ""
        captions = ", with captions" if self.has_captions else ""
        return f"{self.source}, {self.num_images:,} {self.examples} of {size}{classes}{captions}"


def look_at(source: ImageSource, kind: str) -> DataSummary:
    """Facts from some images, spread evenly over the source."""
    places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist()
    shapes, words, in_colour = [], 0, False
    for place in places:
        try:
            example = source.read(place)
        except UnreadableImage:  # it is counted and named when its turn comes
            continue
        shapes.append(example.image.shape[:2])
        in_colour |= _is_coloured(example.image)
        words = max([words, *(len(caption.split()) for caption in example.captions)])
    if not shapes:
        raise UserError(f"none of {len(places)} images of {source.name} can be read; expected image files")
    one_size = len(set(shapes)) == 1 and shapes[0][0] == shapes[0][1]
    return DataSummary(
        source=kind,
        num_images=len(source),
        num_classes=len(source.class_names),
        has_captions=source.has_captions,
        sides=sorted(min(shape) for shape in shapes),
        one_size=one_size,
        in_colour=in_colour,
        caption_words=words,
    )


def _is_coloured(image: np.ndarray) -> bool:
    return image.shape[-1] == 3 and int(np.ptp(image.astype(np.int16), axis=2).max()) > 16


def model_for(device: torch.device) -> dict[str, Any]:
    """Sizes of the model on a device, where the data do not ask for a smaller one: a width that is given
    alone is checked with this number of heads, not with the default one."""
    return MODEL[kind_of(device)]


def kind_of(device: torch.device) -> str:
    """Whose settings a device takes: other accelerators than GPUs have none of their own."""
    return "cpu" if device.type == "cpu" else "cuda"


def settings_from(
    facts: DataSummary, given: RunConfig, device: str, *, low_precision: bool
) -> dict[str, Any]:
    """Tables of settings, as in a recipe. `given`: what the user said, defaults elsewhere; `device`: cpu or
    cuda; `low_precision`: bfloat16 is the faster one there."""
    median = facts.sides[len(facts.sides) // 2]
    size = given.data.fit()
    given_side = min(size.height, size.width)
    side = given_side or min(median, SIDE[device])
    patch = _patch_size(given, side, device)
    if not given_side:
        side = max(side // patch, 1) * patch
    tiny = device == "cpu" and side <= 16 and not facts.in_colour
    batch = BATCH[device]
    while batch > 8 and batch > facts.num_images:
        batch //= 2
    chosen: dict[str, Any] = {
        "data": {"image_size": side, "flip": facts.in_colour and not facts.has_captions},
        "codec": {"patch_size": patch},
        "model": {
            **(SMALL_MODEL if tiny else MODEL[device]),
            "num_class_tokens": 4 * (facts.num_classes > 1),
            "position_embedding": "rope",
        },
        "diffusion": {
            "path": "rectified_flow",
            "prediction_type": "velocity",
            "level_distribution": "logit_normal",
        },
        "factorization": {"decay": DECAY[device]},
        "train": {
            "images": MANY_IMAGES,
            "minutes": MINUTES[device],
            "batch_size": batch,
            "lr": 2e-3 if device == "cpu" else 3e-4,
            "lr_schedule": "wsd",
            "warmup_images": _warmup(given.train, facts.num_images, batch),
            "eps": 1e-8,
            "precision": "bfloat16" if low_precision else "float32",
            # In bfloat16, oneDNN keeps memory for every new length of a sequence.
            **({"length_multiple": 16} if low_precision and device == "cpu" else {}),
            "evaluate_images": 256,
            "sample_minutes": 2.0,
        },
        "sample": {
            "sampler": "dpm++",
            "diffusion_steps": [25],
            "guidance_scale": 4.0 if facts.num_classes > 1 or facts.has_captions else 1.0,
        },
    }
    if facts.num_images < 40:
        chosen["data"]["holdout"] = 0.0
    if given.codec.autoencoder:  # its latents are small already
        del chosen["codec"]
        chosen["data"]["image_size"] = given_side or min(median // 16 * 16, 256)
    if given.data.native:  # the area of the square that it would have chosen
        chosen["data"]["max_area"] = chosen["data"]["image_size"] ** 2
    if facts.has_captions:
        chosen["text"] = {"tokenizer": "train", "vocab_size": 2048}
        room = 3 * facts.caption_words + 8
        chosen["model"]["max_text_tokens"] = min(max(-(-room // 32) * 32, 32), 256)
    return chosen


def _patch_size(given: RunConfig, side: int, device: str) -> int:
    """The one that is given; else that of the device's grid or the nearest that divides the sides: of a given
    size, as far as one is within a factor of two; of the images' own, to which the side is else cut, only
    up to half as large again (28 pixels: 4)."""
    if given.codec.patch_size > 1:
        return given.codec.patch_size
    patch, size = max(side // GRID[device], 1), given.data.fit()
    if not size.height:
        return next((n for n in range(patch, 3 * patch // 2 + 1) if not side % n), patch)
    near = [n for n in range(-(-patch // 2), 2 * patch + 1) if not (size.height % n or size.width % n)]
    return min(near, key=lambda n: max(n / patch, patch / n), default=patch)


def _warmup(asked: TrainConfig, num_images: int, batch: int) -> int:
    """Images over which the learning rate rises: those of 50 steps; at most a tenth of a length that is
    given."""
    images = asked.images if asked.images != TrainConfig().images else MANY_IMAGES
    return min(50 * batch, int((asked.epochs * num_images or images) / 10))


def settings_of_documents(source: DocumentSource) -> dict[str, Any]:
    """Settings for documents, which hold texts, and several images, beside those for their images alone."""
    places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist()
    texts, images = [source.texts(place) for place in places], [source.images_of(place) for place in places]
    tokens = [
        3 * sum(len(text.split()) + 1 for text in found) + 2 * n
        for found, n in zip(texts, images, strict=True)
    ]
    return {
        "data": {"flip": False},
        "text": {"tokenizer": "train", "vocab_size": 2048},
        "model": {
            "num_class_tokens": 0,
            "max_images": max(images),
            "max_text_tokens": min(max(-(-(max(tokens) + 8) // 32) * 32, 32), 1024),
        },
        "sample": {"guidance_scale": 1.0},
    }


def as_begun(out: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """The same settings with the values that the run in this folder began with, where there is one. How long
    it trains is asked for anew each time."""
    checkpoints = checkpoints_of(out)
    if not checkpoints:
        return chosen
    values = {**flat(to_dict(RunConfig())), **LATER, **flat(stored_settings(checkpoints[-1]))}
    anew = ("train.minutes",)
    return {
        table: {
            name: values.get(f"{table}.{name}", value) if f"{table}.{name}" not in anew else value
            for name, value in settings.items()
        }
        for table, settings in chosen.items()
    }


def settings_for(
    given: RunConfig, device: torch.device, decided: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """(tables of settings to lay beneath recipes and options, lines that say which and how to override them)
    for the data that `given` names: the settings that the user gave, defaults elsewhere. `decided`:
    their names, which are not told again; a length in images or epochs stands alone."""
    path = given.data.cache or given.data.path or given.data.source
    out = given.out if given.out != RunConfig().out else f"runs/{_name_of(path)}"
    if given.data.cache:
        return {"out": out}, []
    kind = kind_of(device)
    low_precision = faster_in_bfloat16(device)
    if given.data.has_documents:
        source = open_documents(given.data, given.train.seed)
        facts = look_at(DocumentImages(source, documents_with_images(source)), given.data.source)
        facts = replace(facts, num_images=len(source), examples="documents with images")
        chosen = settings_from(facts, given, kind, low_precision=low_precision)
        chosen = merge([chosen, settings_of_documents(source)])
    else:
        facts = look_at(open_source(given.data), given.data.source)
        chosen = settings_from(facts, given, kind, low_precision=low_precision)
    if {"train.images", "train.epochs"} & set(decided):  # which the time would end before
        del chosen["train"]["minutes"]
    run = Path(os.path.expanduser(out))
    if with_language(run, given.train.init):
        chosen = beside_language(chosen)
    chosen = as_begun(run, chosen)
    lines = [f"{printable(path)}: {facts.describe()}"]
    lines.append("chosen for these data and this machine (options and recipes override it):")
    return {"out": out, **chosen}, lines + _in_lines({**chosen, "out": out}, decided)


def with_language(run: Path, init: str) -> bool:
    """True for a run that goes on with a language model or, if it has not begun, begins with one."""
    source = str(run) if checkpoints_of(run) else init
    return bool(source) and read_latest(Path(source), load_spec)[0].model.speaks


def beside_language(chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that a language model brings: its size, its tokenizer, its positions."""
    theirs = {
        "model": {"hidden_size", "depth", "num_heads", "position_embedding"},
        "text": {"tokenizer", "vocab_size"},
    }
    return {
        table: {k: v for k, v in values.items() if k not in theirs.get(table, ())}
        for table, values in chosen.items()
    }


def _name_of(path: str) -> str:
    """A name for a run: that of the folder or file without its ending; for shards, that of their folder."""
    place = Path(os.path.expanduser(path)).absolute()
    if any(mark in place.name for mark in "*?[{"):
        place = place.parent
    return place.name.split(".")[0] or "train"


def _in_lines(chosen: dict[str, Any], decided: Collection[str]) -> list[str]:
    """The settings as options, table by table."""
    lines = []
    tables = {"": {k: v for k, v in chosen.items() if not isinstance(v, dict)}}
    tables |= {k: v for k, v in chosen.items() if isinstance(v, dict)}
    for table, settings in tables.items():
        prefix = f"{table}." if table else ""
        options = [
            f"--{prefix}{name.replace('_', '-')} {_as_option(value)}"
            for name, value in settings.items()
            if prefix + name not in decided and value != MANY_IMAGES
        ]
        lines += ["  " + " ".join(options)] if options else []
    return lines


def _as_option(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
