"""The sample stream: all epochs laid end to end, read from any place on.

Sample n of the stream is image permutation(seed, n // N)[n % N] of the N training images. The order depends on
(seed, epoch) and the data set alone; how many workers read it, and how many processes share it, changes
nothing. A run's progress in its data is one number, the images seen.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from causalfusion.config import DataConfig
from causalfusion.data.source import ImageSource, UnreadableImage
from causalfusion.data.transforms import center_crop, flip_decision
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed

HOLDOUT_SEED = 20_241_216
MIN_READ = 100
MAX_UNREADABLE = 0.01


@dataclass(frozen=True)
class Batch:
    images: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    labels: Tensor
    """(B,) int64; 0 where there are none."""
    captions: list[str | None]
    sample_indices: Tensor
    """(B,) int64 places in the sample stream."""
    image_indices: Tensor
    """(B,) int64 places in the source."""


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", epoch))).permutation(length)


def stream(places: np.ndarray, indices: np.ndarray, *, seed: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The images at these places of the stream over `indices`: (source indices, whether mirrored)."""
    images, mirrored = np.empty(len(places), np.int64), np.zeros(len(places), bool)
    for row, place in enumerate(places.tolist()):
        epoch, within = divmod(place, len(indices))
        images[row] = indices[_permutation(seed, epoch, len(indices))[within]]
        mirrored[row] = flip and flip_decision(seed, epoch, int(images[row]))
    return images, mirrored


def split_holdout(num_images: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) indices, the same for every run; each has an image where holdout > 0."""
    if holdout == 0:
        return np.arange(num_images), np.empty(0, np.int64)
    if num_images < 2:
        raise UserError(f"data.holdout is {holdout} with {num_images} image; expected 0, or more images")
    count = min(max(round(num_images * holdout), 1), num_images - 1)
    shuffled = np.random.Generator(np.random.Philox(HOLDOUT_SEED)).permutation(num_images)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


@dataclass(frozen=True)
class _Read:
    pixels: np.ndarray
    label: int
    caption: str | None
    index: int
    failures: tuple[tuple[int, str], ...]


class _Reader(Dataset):
    """Reads batches: lists of (source index, mirrored)."""

    def __init__(self, source: ImageSource, image_size: int, allowed: np.ndarray | None) -> None:
        self.source, self.image_size, self.allowed = source, image_size, allowed

    def __getitem__(self, requests: Sequence[tuple[int, bool]]) -> list[_Read] | UserError:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.read(requests)
        except UserError as error:  # a worker would wrap what it raises in a traceback: hand it over instead
            return error

    def read(self, requests: Sequence[tuple[int, bool]]) -> list[_Read]:
        return [self._read(index, mirrored) for index, mirrored in requests]

    def _read(self, index: int, mirrored: bool) -> _Read:
        """The image, or the next readable one behind it."""
        failures = []
        pool = self.allowed if self.allowed is not None else np.arange(len(self.source))
        place = int(np.searchsorted(pool, index))
        for attempt in range(len(pool)):
            current = int(pool[(place + attempt) % len(pool)])
            try:
                example = self.source.read(current)
            except UnreadableImage as error:
                failures.append((current, str(error)))
                if len(failures) >= MIN_READ:
                    break
                continue
            pixels = center_crop(example.image, self.image_size) if self.image_size else example.image
            pixels = pixels[:, ::-1] if mirrored else pixels
            return _Read(pixels, example.label or 0, example.caption, current, tuple(failures))
        raise UserError(f"none of {len(failures)} images in a row can be read, the first: {failures[0][1]}")


class _Health:
    """Counts what could not be read: each image is named once, too many of them stop the run."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        self.seen: set[int] = set()

    def note(self, reads: Sequence[_Read]) -> None:
        for read in reads:
            self.seen.add(read.index)
            for index, name in read.failures:
                self.seen.add(index)
                if index not in self.bad:
                    self.bad[index] = name
                    warnings.warn(f"skipped an image that cannot be read ({len(self.bad)} so far): {name}", stacklevel=2)
        if len(self.seen) >= MIN_READ and len(self.bad) > MAX_UNREADABLE * len(self.seen):
            first = "; ".join(list(self.bad.values())[:3])
            raise UserError(
                f"{len(self.bad)} of {len(self.seen)} images cannot be read, more than {MAX_UNREADABLE:.0%}: {first}; "
                "remove or repair them"
            )


class Loader:
    """Batches of the stream, this process's share of each."""

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        indices: np.ndarray | None = None,
        flip: bool = False,
    ) -> None:
        self.indices = np.arange(len(source)) if indices is None else np.sort(indices)
        self.config, self.seed, self.flip = config, seed, flip
        self.batch_size, self.share, self.rank = batch_size, batch_size // world_size, rank
        self.reader = _Reader(source, config.image_size, self.indices)
        self.health = _Health()

    def iterate(self, images_seen: int) -> Iterator[Batch]:
        """Batches [n, n + batch_size) of the stream from n = images_seen on, without end."""
        loader = DataLoader(
            self.reader,
            sampler=_Requests(self, images_seen),
            batch_size=None,
            num_workers=self.config.num_workers,
            collate_fn=_unchanged,
            prefetch_factor=4 if self.config.num_workers else None,
        )
        first = images_seen + self.rank * self.share
        for reads in loader:
            if isinstance(reads, UserError):
                raise reads
            self.health.note(reads)
            yield _collate(reads, np.arange(first, first + self.share))
            first += self.batch_size

    def requests(self, images_seen: int) -> list[tuple[int, bool]]:
        first = images_seen + self.rank * self.share
        images, mirrored = stream(
            np.arange(first, first + self.share), self.indices, seed=self.seed, flip=self.flip
        )
        return list(zip(images.tolist(), mirrored.tolist(), strict=True))


class _Requests:
    """What to read for every batch, in order, for ever."""

    def __init__(self, loader: Loader, images_seen: int) -> None:
        self.loader, self.images_seen = loader, images_seen

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        images_seen = self.images_seen
        while True:
            yield self.loader.requests(images_seen)
            images_seen += self.loader.batch_size


def load_indices(source: ImageSource, indices: np.ndarray, config: DataConfig) -> Batch:
    """Exactly these images, not mirrored; unreadable ones are replaced by the next readable."""
    reader = _Reader(source, config.image_size, None)
    reads = reader.read([(int(index), False) for index in indices])
    return _collate(reads, np.asarray(indices))


def _unchanged(item: object) -> object:
    return item


def _collate(reads: Sequence[_Read], places: np.ndarray) -> Batch:
    shape = reads[0].pixels.shape
    for read in reads:
        if read.pixels.shape != shape:
            raise UserError(
                f"image {read.index} is {read.pixels.shape[1]}x{read.pixels.shape[0]} with {read.pixels.shape[2]} "
                f"channels, image {reads[0].index} {shape[1]}x{shape[0]} with {shape[2]}; expected one size: "
                "give --data.image-size"
            )
    pixels = torch.from_numpy(np.stack([read.pixels for read in reads])).permute(0, 3, 1, 2)
    return Batch(
        images=pixels.float().div_(127.5).sub_(1).contiguous(),
        labels=torch.tensor([read.label for read in reads], dtype=torch.int64),
        captions=[read.caption for read in reads],
        sample_indices=torch.from_numpy(places.astype(np.int64)),
        image_indices=torch.tensor([read.index for read in reads], dtype=torch.int64),
    )
