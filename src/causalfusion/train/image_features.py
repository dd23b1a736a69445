"""The features of training images that a model is aligned with: kept on disk, or made for each batch.

A folder `<hash of encoder, data, size and grid>` holds `plain.npy` and, for mirrored images, `mirrored.npy`,
(images, L, E) float16, memory-mapped. They are made once, in batches that do not depend on the training, so
that what a run reads does not depend on when they were made; an interrupted pass goes on where it was.

Shape letters: B images of a batch, C, H, W channels and pixels, L image tokens, E features.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from causalfusion.data.loader import Samples, to_float
from causalfusion.data.reader import Reader
from causalfusion.encoders.places import Encoder
from causalfusion.errors import UserError
from causalfusion.files import hash_of, in_use, map_array, write_whole
from causalfusion.machine.processes import World
from causalfusion.machine.progress import ProgressLine

BATCH = 64
"""Images that go through the encoder together when features are made to be kept."""
_SECONDS = 20.0
"""Between two notes of how far a pass is."""


class Features(Protocol):
    """Features of images of a source."""

    def read(self, indices: np.ndarray, mirrored: np.ndarray, images: Tensor | None) -> Tensor:
        """(B, L, E) float16 of the images of these indices; `images` (B, C, H, W): the same, mirrored where
        they are to be, if they are at hand."""
        ...


@dataclass(frozen=True)
class EncodedSource:
    """Images with the encoder that reads them."""

    encoder: Encoder
    reader: Reader
    grid: tuple[int, int]
    device: torch.device

    def encode(self, images: Tensor) -> Tensor:
        """(B, L, E) float16 of images (B, C, H, W) in [-1, 1]."""
        features = self.encoder.features(images.to(self.device), self.grid)
        if not features.isfinite().all():
            raise UserError("features are too large for 16-bit numbers; expected another encoder")
        return features

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """The images (B, C, H, W) themselves."""
        samples = Samples(np.asarray(indices, np.int64), mirrored, np.zeros(len(indices), np.int64))
        return to_float(self.reader.read(samples).pixels)

    @property
    def facts(self) -> list[object]:
        """All that decides the features."""
        source, fit = self.reader.source, self.reader.fit
        return [self.encoder.fingerprint, source.fingerprint(), repr(fit), *self.grid]

    def __len__(self) -> int:
        return len(self.reader.source)


@dataclass(frozen=True)
class ComputedFeatures:
    """Features made for each batch."""

    encoded: EncodedSource

    def read(self, indices: np.ndarray, mirrored: np.ndarray, images: Tensor | None) -> Tensor:
        return self.encoded.encode(self.encoded.read(indices, mirrored) if images is None else images)


@dataclass(frozen=True)
class StoredFeatures:
    """Features on disk."""

    plain: np.ndarray
    mirrored: np.ndarray | None

    def read(self, indices: np.ndarray, mirrored: np.ndarray, images: Tensor | None) -> Tensor:
        found = self.plain[indices]
        if self.mirrored is not None and mirrored.any():
            found[mirrored] = self.mirrored[indices[mirrored]]
        return torch.from_numpy(np.ascontiguousarray(found))


def stored_features(
    encoded: EncodedSource, folder: Path, world: World, *, mirrored: bool, show_progress: bool
) -> StoredFeatures:
    """The features in a folder, made by the main process where they are not there yet. Raises UserError for
    damaged ones."""
    place = folder / hash_of(encoded.facts)[:16]
    files = [place / f"{name}.npy" for name in ("plain", "mirrored")[: 1 + mirrored]]
    if world.is_main and not all(file.is_file() for file in files):
        with in_use(place, "the features"):
            for file in files:
                if not file.is_file():
                    _make(encoded, file, show_progress=show_progress)
    world.barrier()
    arrays = [_open(file, len(encoded)) for file in files]
    return StoredFeatures(arrays[0], arrays[1] if mirrored else None)


def _make(encoded: EncodedSource, file: Path, *, show_progress: bool) -> None:
    """Make the features of all images, in the order of the source."""
    partial, note = file.with_suffix(".unfinished"), file.with_suffix(".json")
    count, mirror = len(encoded), file.stem == "mirrored"
    done = _done(partial, note, count)
    line = ProgressLine(count, done, enabled=show_progress, what="images")
    array, saved = open_memmap(partial, mode="r+") if done else None, time.monotonic()
    while done < count:
        indices = np.arange(done, min(done + BATCH, count))
        features = encoded.encode(encoded.read(indices, np.full(len(indices), mirror))).cpu().numpy()
        if array is None:
            array = _reserved(partial, features.dtype, (count, *features.shape[1:]))
        array[indices] = features
        done += len(indices)
        line.show(done, f"features of {file.stem} images, to align with")
        if time.monotonic() - saved > _SECONDS:
            array.flush()
            write_whole(note, json.dumps(done))
            saved = time.monotonic()
    if array is not None:
        array.flush()
    partial.replace(file)
    note.unlink(missing_ok=True)
    line.close()


def _reserved(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new array on disk, whose room is taken at once: writing to a mapped file kills the process where the
    disk is full. Raises OSError, and leaves no file, where there is no room."""
    array = open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                return array
            file.unlink()
            error.filename = str(file)
            raise
    return array


def _done(partial: Path, note: Path, count: int) -> int:
    """Images that an interrupted pass has finished; 0 for none, and where its file is not whole."""
    try:
        done = json.loads(note.read_text())
        whole = len(map_array(partial)) == count
    except (OSError, ValueError, TypeError):
        return 0
    return done if whole and isinstance(done, int) and 0 < done <= count else 0


def _open(file: Path, count: int) -> np.ndarray:
    try:
        array = map_array(file)
    except (OSError, ValueError):
        array = None
    if array is None or array.ndim != 3 or len(array) != count or array.dtype != np.float16:
        raise UserError(f"{file} is damaged; delete it, and run the same command again")
    return array
