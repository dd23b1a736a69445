"""A sample set: a folder that grows, part by part, to N generated images, with the settings that made them.

    settings.json            everything that image i depends on besides i: weights, sampling, labels, seed
    part-START-STOP.npz      images START..STOP-1 (uint8) and their labels, written whole

Image i is a function of these settings and i alone. So any process may make any part at any time, and a set
may be interrupted and go on growing.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.config import SampleConfig
from causalfusion.config.serialize import flat, from_dict, read_json, to_dict
from causalfusion.data.npz_file import NpzFile
from causalfusion.errors import UserError, check
from causalfusion.evaluate.samples.images import ImageBatch, Shape
from causalfusion.files import hash_of, holds_anything, write_whole

FORMAT = "causalfusion-samples-1"
SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Settings that every sample set has, besides others."""

    images: int
    identity: dict[str, Any]
    image_shape: tuple[int, int, int]
    class_names: list[str]
    model: str = ""
    images_seen: int = 0

    def __post_init__(self) -> None:
        height, width, channels = self.image_shape
        possible = 0 < height <= 65_536 and 0 < width <= 65_536 and channels in (1, 3)
        check(possible, "image_shape", list(self.image_shape), "height, width, and 1 or 3 channels")
        check(self.images > 0, "images", self.images, "a positive number")


class SampleSet:
    """Images 0..count-1 of a sample set; without `count` all images up to the first gap. Raises UserError
    where the folder holds no sample set, or fewer images."""

    def __init__(self, folder: Path, count: int | None = None) -> None:
        self.settings = read_settings(folder)
        self.folder, self.name = folder, str(folder)
        self.class_names: list[str] = list(self.settings["class_names"])
        height, width, channels = self.settings["image_shape"]
        self.shape: Shape = (height, width, channels)
        whole = missing_ranges(folder, _last_stop(folder) + 1)
        available = whole[0].start
        if count is not None and available < count:
            raise UserError(
                f"{folder} holds {available} of {count} samples without a gap; "
                "run the command that made it again, or ask for fewer"
            )
        self._count = available if count is None else count
        if not self._count:
            raise UserError(f"{folder} holds no samples yet; run the command that made it again")

    def __len__(self) -> int:
        return self._count

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that image i depends on, besides i."""
        return self.settings["identity"]

    def fingerprint(self) -> str:
        return hash_of([json.dumps(self.identity, sort_keys=True), len(self)])

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[ImageBatch]:
        """Yields batches part by part. Where parts overlap, the images of the first one count."""
        done = 0
        segments = []
        for start, stop, path in parts_of(self.folder):
            if done < min(stop, len(self)):
                segments.append((start, stop, range(done, min(stop, len(self))), path))
                done = min(stop, len(self))
        for start, stop, wanted, path in segments[rank::world_size]:
            part = read_part(path, start, stop, self.shape)
            for first in range(wanted.start, wanted.stop, batch_size):
                indices = np.arange(first, min(first + batch_size, wanted.stop))
                labels = None if part.labels is None else part.labels[indices - start]
                yield ImageBatch(indices, part.pixels[indices - start], labels)

    def seconds(self) -> float:
        """Seconds of generation of the parts in use, summed over processes."""
        used = [path for start, _, path in parts_of(self.folder) if start < len(self)]
        return sum(_seconds(path) for path in used)


def open_for_writing(folder: Path, identity: dict[str, Any], facts: dict[str, Any], count: int) -> None:
    """Begin a sample set of `count` images, or extend one of the same identity. `facts` hold image_shape,
    class_names and other settings worth keeping. Raises UserError where the folder holds anything else."""
    path = folder / SETTINGS
    if path.exists():
        settings = read_settings(folder)
        check_same_identity(settings["identity"], identity, folder)
        if settings["images"] >= count:
            return
    elif holds_anything(folder):
        raise UserError(f"{folder} holds other things than samples; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    values = {"format": FORMAT, "images": count, "identity": identity, **facts}
    write_whole(path, json.dumps(values, indent=2) + "\n")


def check_same_identity(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raises UserError, with the first difference, where a set's identity is not the one asked for."""
    # Sampling settings that came later did what their default does.
    usual, asked_for = json.loads(json.dumps([{"sample": to_dict(SampleConfig())}, new]))
    before, after = ({**flat(usual), **flat(identity)} for identity in (old, asked_for))
    for name in [*after, *before]:
        there, asked = (values.get(name, "nothing") for values in (before, after))
        if there != asked:
            raise UserError(
                f"{folder} holds samples with {name} {_short(there)}, and {_short(asked)} is asked for; "
                "give another --out, or the same settings to go on"
            )


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings of the sample set in a folder. Raises UserError where there is none, or it is damaged."""
    path = folder / SETTINGS
    if not path.exists():
        raise UserError(f"{folder} is not a sample set: there is no {SETTINGS}")
    settings = read_json(path, "sample set")
    if not is_sample_set(settings):
        raise UserError(f"{path} is not of a sample set ({FORMAT}); give a folder made by evaluate")
    known = {field.name for field in fields(_Settings)}
    try:
        from_dict(_Settings, {key: value for key, value in settings.items() if key in known})
    except UserError as error:
        raise UserError(f"{path}: {error}; the sample set is damaged") from None
    return settings


def is_sample_set(settings: object) -> bool:
    """True for settings of a sample set."""
    keys = {"identity", "images", "image_shape", "class_names"}
    return isinstance(settings, dict) and settings.get("format") == FORMAT and keys <= settings.keys()


def parts_of(folder: Path) -> list[tuple[int, int, Path]]:
    """(start, stop, file) of every part, sorted."""
    parts = sorted((*bounds, path) for path in folder.iterdir() if (bounds := _bounds(path)))
    return [part for part in parts if part[0] < part[1]]


def _part_path(folder: Path, indices: range) -> Path:
    return folder / f"part-{indices.start:07d}-{indices.stop:07d}.npz"


def _bounds(path: Path) -> tuple[int, int] | None:
    """The first index of a part and the one after its last, by its file name; None for another file."""
    match = re.fullmatch(r"part-(\d+)-(\d+)\.npz", path.name)
    return (int(match[1]), int(match[2])) if match else None


def missing_ranges(folder: Path, count: int) -> list[range]:
    """Ranges of the image indices below `count` that no part holds."""
    gaps, done = [], 0
    for start, stop, _ in parts_of(folder) if folder.is_dir() else []:
        if start > done:
            gaps.append(range(done, min(start, count)))
        done = max(done, stop)
        if done >= count:
            return [gap for gap in gaps if len(gap)]
    return [gap for gap in [*gaps, range(done, count)] if len(gap)]


def write_part(
    folder: Path, indices: range, pixels: np.ndarray, labels: np.ndarray | None, seconds: float
) -> None:
    """Write images as a part, whole or not at all; `seconds` is the duration of their generation."""
    arrays = {"images": pixels, "seconds": np.array(seconds)}
    if labels is not None:
        arrays["labels"] = np.asarray(labels, np.int64)
    write_whole(_part_path(folder, indices), lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def read_part(path: Path, start: int, stop: int, shape: Shape) -> ImageBatch:
    """Images start..stop-1, which a part holds. Raises UserError where it is damaged."""
    try:
        file = NpzFile(path)
        wrong = [name for name in ("images", "seconds") if name not in file]
        check(not wrong, "its arrays", file.names, "images and seconds among them")
        pixels = file["images"]
        labels = file["labels"] if "labels" in file.names else None
        seconds = file["seconds"]
        check(seconds.shape == () and seconds.dtype.kind in "fiu", "seconds", seconds.tolist(), "a number")
        if labels is not None:
            fits = labels.shape == (stop - start,) and labels.dtype == np.int64
            check(fits, "labels", f"{labels.dtype} {labels.shape}", f"int64 ({stop - start},)")
    except UserError as error:
        raise UserError(
            f"{path} cannot be read ({error}); it is damaged: remove it and run again to make it anew"
        ) from None
    if pixels.shape != (stop - start, *shape) or pixels.dtype != np.uint8:
        raise UserError(
            f"{path} holds {pixels.dtype} of shape {pixels.shape}, expected uint8 {(stop - start, *shape)}; "
            "remove it and run again to make it anew"
        )
    return ImageBatch(np.arange(start, stop), pixels, labels)


def _seconds(path: Path) -> float:
    seconds = float(NpzFile(path)["seconds"])
    return seconds if math.isfinite(seconds) else 0.0


def _last_stop(folder: Path) -> int:
    return max((stop for _, stop, _ in parts_of(folder)), default=0)


def _short(value: object) -> str:
    """A value as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
