"""The sample stream: all epochs laid end to end, read from any place on.

Sample n of the stream is image permutation(seed, n // N)[n % N] of the N training images. The order depends
on (seed, epoch) and the data set alone, and so does which of its captions an image comes with; how many
workers read it, and how many processes share it, changes nothing. A run's progress in its data is one
number, the images seen.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from causalfusion.config import DataConfig
from causalfusion.data.captions import draw_caption
from causalfusion.data.reader import MIN_READ, Health, Reader, Reads, Samples, warn_of
from causalfusion.data.source import ImageSource
from causalfusion.data.transforms import flip_decision
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed

__all__ = [
    "MIN_READ", "Batch", "Loader", "Samples", "batch_of", "leave_signals", "load_indices", "read_indices",
    "split_holdout", "stream", "unchanged",
]  # fmt: skip

HOLDOUT_SEED = 20_241_216


@dataclass(frozen=True)
class Batch:
    images: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    labels: Tensor
    """(B,) int64; 0 where there are none."""
    captions: list[str | None]
    """The one of each image's captions that is drawn for the epoch; None where there are none."""
    all_captions: list[tuple[str, ...]]
    sample_indices: Tensor
    """(B,) int64 places in the sample stream."""
    image_indices: Tensor
    """(B,) int64 places in the source."""


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", epoch))).permutation(length)


def stream(places: np.ndarray, indices: np.ndarray, *, seed: int, flip: bool) -> Samples:
    """What lies at these places of the stream over the images `indices` of a source."""
    images, mirrored = np.empty(len(places), np.int64), np.zeros(len(places), bool)
    epochs, within = np.divmod(places, len(indices))
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        images[rows] = indices[_permutation(seed, epoch, len(indices))[within[rows]]]
        if flip:
            mirrored[rows] = [flip_decision(seed, epoch, index) for index in images[rows].tolist()]
    return Samples(images, mirrored, epochs)


def split_holdout(num_images: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) indices, the same for every run; each has an image where holdout > 0.

    The held-out ones come shuffled, so that the first of them stand for all.
    """
    if holdout == 0:
        return np.arange(num_images), np.empty(0, np.int64)
    if num_images < 2:
        raise UserError(f"data.holdout is {holdout} with {num_images} image; expected 0, or more images")
    count = min(max(round(num_images * holdout), 1), num_images - 1)
    shuffled = np.random.Generator(np.random.Philox(HOLDOUT_SEED)).permutation(num_images)
    return np.sort(shuffled[count:]), shuffled[:count]


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
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} cannot be shared by {world_size} processes; expected a multiple"
            )
        self.indices = np.arange(len(source)) if indices is None else np.sort(indices)
        self.config, self.seed, self.flip = config, seed, flip
        self.batch_size, self.share, self.rank = batch_size, batch_size // world_size, rank
        self.reader = Reader(source, config.image_size, self.indices)
        self.health = Health(len(self.indices))

    def iterate(self, images_seen: int) -> Iterator[Batch]:
        """Batches [n, n + batch_size) of the stream from n = images_seen on, without end."""
        num_workers = self.config.num_workers
        loader = DataLoader(
            self.reader,
            sampler=_Requests(self, images_seen),
            batch_size=None,
            num_workers=num_workers,
            collate_fn=unchanged,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=leave_signals,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        places = self.places(images_seen)
        for reads in loader:
            if isinstance(reads, UserError):
                raise reads
            self.health.note(len(reads.indices), reads.failures)
            yield _to_batch(reads, places, self._captions(reads))
            places = places + self.batch_size

    def _captions(self, reads: Reads) -> list[str | None]:
        """By the image that was asked for, as with mirroring, also where another had to stand in."""
        asked = zip(reads.samples.indices.tolist(), reads.samples.epochs.tolist(), strict=True)
        return [
            draw_caption(captions, seed=self.seed, epoch=epoch, index=index)
            for captions, (index, epoch) in zip(reads.captions, asked, strict=True)
        ]

    def places(self, images_seen: int) -> np.ndarray:
        """This process's places of the stream in the batch that begins at `images_seen`."""
        return images_seen + self.rank * self.share + np.arange(self.share)


class _Requests:
    """What to read for every batch, in order, for ever."""

    def __init__(self, loader: Loader, images_seen: int) -> None:
        self.loader, self.images_seen = loader, images_seen

    def __iter__(self) -> Iterator[Samples]:
        loader, places = self.loader, self.loader.places(self.images_seen)
        while True:
            yield stream(places, loader.indices, seed=loader.seed, flip=loader.flip)
            places = places + loader.batch_size


def load_indices(source: ImageSource, indices: np.ndarray, config: DataConfig) -> Batch:
    """Exactly these images, not mirrored, with the first of their captions; unreadable ones are named in a
    warning and replaced by readable ones (`image_indices` tells)."""
    return batch_of(read_indices(source, indices, config))


def read_indices(source: ImageSource, indices: np.ndarray, config: DataConfig) -> Reads:
    """What `load_indices` reads, as the arrays that workers hand over."""
    indices = np.asarray(indices, np.int64)
    samples = Samples(indices, np.zeros(len(indices), bool), np.zeros(len(indices), np.int64))
    return Reader(source, config.image_size, np.arange(len(source))).read(samples)


def batch_of(reads: Reads) -> Batch:
    """What `read_indices` read, as tensors; what could not be read is named."""
    for _, name in reads.failures:
        warn_of(name)
    first = [captions[0] if captions else None for captions in reads.captions]
    return _to_batch(reads, reads.samples.indices, first)


def unchanged(item: object) -> object:
    """What a reader gives is a batch already."""
    return item


def leave_signals(worker: int) -> None:
    """Signals that reach the whole process group (Ctrl-C, schedulers, torchrun) are for the main process,
    which finishes its step, saves, and ends its workers; a worker whose parent is gone ends by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _to_batch(reads: Reads, places: np.ndarray, captions: list[str | None]) -> Batch:
    pixels = torch.from_numpy(reads.pixels).permute(0, 3, 1, 2)
    return Batch(
        images=pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1),
        labels=torch.from_numpy(reads.labels),
        captions=captions,
        all_captions=reads.captions,
        sample_indices=torch.from_numpy(places.astype(np.int64)),
        image_indices=torch.from_numpy(reads.indices),
    )
