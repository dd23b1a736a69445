"""The sample stream: all epochs one after another, readable from any position.

Sample n of the stream is image permutation(seed, n // N)[n % N] of the N training images. The order, and the
caption that is drawn for each image, depend only on (seed, epoch) and the data set, not on the number of
workers or processes. A run's position in its data is therefore one number, the images seen.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from causalfusion.config import DataConfig
from causalfusion.config.sizes import Fit
from causalfusion.data.buckets import Buckets
from causalfusion.data.captions import draw_caption
from causalfusion.data.reader import MIN_READ, Health, Reader, Reads, Samples, warn_unreadable
from causalfusion.data.sizes import parts_of
from causalfusion.data.source import ImageSource
from causalfusion.data.transforms import flip_decision
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed

__all__ = [
    "MIN_READ",
    "Batch",
    "Loader",
    "Samples",
    "batch_of",
    "leave_signals",
    "load_indices",
    "read_indices",
    "split_holdout",
    "stream",
    "to_float",
    "unchanged",
]

HOLDOUT_SEED = 20_241_216


@dataclass(frozen=True)
class Batch:
    images: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    labels: Tensor
    """(B,) int64 class labels; 0 for data without labels."""
    captions: list[str | None]
    """The caption drawn for each image in its epoch; None for an image without captions."""
    all_captions: list[tuple[str, ...]]
    """All captions of each image."""
    sample_indices: Tensor
    """(B,) int64 positions in the sample stream."""
    image_indices: Tensor
    """(B,) int64 indices into the source."""
    mirrored: np.ndarray
    """(B,) bool: the image is mirrored."""


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", epoch))).permutation(length)


def stream(places: np.ndarray, indices: np.ndarray, *, seed: int, flip: bool) -> Samples:
    """The samples at these positions of the stream over the images `indices` of a source."""
    images, mirrored = np.empty(len(places), np.int64), np.zeros(len(places), bool)
    epochs, within = np.divmod(places, len(indices))
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        images[rows] = indices[_permutation(seed, epoch, len(indices))[within[rows]]]
        if flip:
            mirrored[rows] = [flip_decision(seed, epoch, index) for index in images[rows].tolist()]
    return Samples(images, mirrored, epochs)


def split_holdout(num_images: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) indices, the same for every run; neither is empty if holdout > 0.

    The held-out ones are shuffled, so that the first n of them are a fair sample. Raises UserError where
    there is only one image to split.
    """
    if holdout == 0:
        return np.arange(num_images), np.empty(0, np.int64)
    if num_images < 2:
        raise UserError(f"data.holdout is {holdout} with {num_images} image; expected 0, or more images")
    count = min(max(round(num_images * holdout), 1), num_images - 1)
    shuffled = np.random.Generator(np.random.Philox(HOLDOUT_SEED)).permutation(num_images)
    return np.sort(shuffled[count:]), shuffled[:count]


class ReadBatch(Protocol):
    """A batch as a worker returns it."""

    @property
    def indices(self) -> np.ndarray: ...

    @property
    def failures(self) -> list[tuple[int, str]]: ...


R = TypeVar("R", bound=ReadBatch)


class StreamReader(Generic[R]):
    """The part of each batch of the stream that belongs to this process, as a `reader` (a `Dataset` that is
    asked for `Samples`) reads it."""

    def __init__(
        self,
        reader: Dataset[R | UserError],
        config: DataConfig,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
        buckets: Buckets | None = None,
        grids: np.ndarray | None = None,
    ) -> None:
        """`grids` (N, 2), by index: those of one grid are read by themselves."""
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} cannot be shared by {world_size} processes; expected a multiple"
            )
        self.reader, self.config, self.indices = reader, config, indices
        self.seed, self.flip, self.buckets, self.grids = seed, flip, buckets, grids
        self.batch_size, self.local_batch_size, self.rank = batch_size, batch_size // world_size, rank
        self.health = Health(len(indices))

    def reads(self, seen: int) -> Iterator[tuple[R, np.ndarray]]:
        """(what is read, its positions in the stream) of this process's part of the batches [n, n +
        batch_size) of the stream, for n = seen, seen + batch_size, ..., without end. Raises UserError if too
        much is unreadable."""
        num_workers = self.config.num_workers
        loader = DataLoader(
            self.reader,
            sampler=_Requests(self, seen),
            batch_size=None,
            num_workers=num_workers,
            collate_fn=unchanged,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=leave_signals,
            generator=torch.Generator(),  # by default it would draw from the global generator
        )
        for reads, (places, _) in zip(loader, self.requests(seen), strict=False):
            if isinstance(reads, UserError):
                raise reads
            self.health.note(len(reads.indices), reads.failures)
            yield reads, places

    def requests(self, seen: int) -> Iterator[tuple[np.ndarray, Samples]]:
        """(positions in the stream, samples) of what is read together, without end."""
        places = self.places(seen)
        while True:
            if self.buckets is not None:
                yield places, self.buckets.samples(places)
            else:
                samples = stream(places, self.indices, seed=self.seed, flip=self.flip)
                yield from parts_of(places, samples, self.grids)
            places = places + self.batch_size

    def places(self, seen: int) -> np.ndarray:
        """This process's positions, (B,) int64, in the batch of the stream that begins at `seen`."""
        return seen + self.rank * self.local_batch_size + np.arange(self.local_batch_size)


class Loader(StreamReader[Reads]):
    """Batches of images of the stream: the part of each that belongs to this process."""

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
        fit: Fit | None = None,
        buckets: Buckets | None = None,
        grids: np.ndarray | None = None,
    ) -> None:
        """`buckets`: the order of images of several sizes; or their `grids` (N, 2), by index into the source:
        then the plain stream, the images of one grid of each batch by themselves."""
        indices = np.arange(len(source)) if indices is None else np.sort(indices)
        replaced_within = grids if buckets is None else buckets.of_images
        super().__init__(
            Reader(source, fit or config.fit(), indices, replaced_within),
            config,
            indices,
            seed=seed,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            flip=flip,
            buckets=buckets,
            grids=grids,
        )

    def iterate(self, images_seen: int) -> Iterator[Batch]:
        """This process's part of the batches that begin at `images_seen`, without end; with `grids`, in parts
        of one grid each. Raises UserError if too many images are unreadable."""
        for reads, places in self.reads(images_seen):
            yield _to_batch(reads, places, self._captions(reads))

    def _captions(self, reads: Reads) -> list[str | None]:
        """The caption drawn for each image. As with mirroring, the draw goes by the index of the requested
        image, even where another replaced it."""
        asked = zip(reads.samples.indices.tolist(), reads.samples.epochs.tolist(), strict=True)
        return [
            draw_caption(captions, seed=self.seed, epoch=epoch, index=index)
            for captions, (index, epoch) in zip(reads.captions, asked, strict=True)
        ]


class _Requests:
    """The samples that are read together, without end: the sampler of a `DataLoader`."""

    def __init__(self, loader: StreamReader[Any], seen: int) -> None:
        self.loader, self.seen = loader, seen

    def __iter__(self) -> Iterator[Samples]:
        for _, samples in self.loader.requests(self.seen):
            yield samples


def load_indices(
    source: ImageSource,
    indices: np.ndarray,
    config: DataConfig,
    fit: Fit | None = None,
    grids: np.ndarray | None = None,
) -> Batch:
    """These images, not mirrored, each with its first caption. A warning names unreadable images; they are
    replaced, and `image_indices` holds the replacements. `fit`: how they are brought to size, if not as the
    settings say; `grids`: as in `Reader`."""
    return batch_of(read_indices(source, indices, config, fit, grids))


def read_indices(
    source: ImageSource,
    indices: np.ndarray,
    config: DataConfig,
    fit: Fit | None = None,
    grids: np.ndarray | None = None,
) -> Reads:
    """The images of `load_indices` as the arrays that workers return."""
    pool = np.arange(len(source))
    reader = Reader(source, config.fit() if fit is None else fit, pool, grids)
    return reader.read(Samples.plain(indices))


def batch_of(reads: Reads) -> Batch:
    """The images of `read_indices` as tensors, with a warning for each unreadable one."""
    for _, name in reads.failures:
        warn_unreadable(name)
    first = [captions[0] if captions else None for captions in reads.captions]
    return _to_batch(reads, reads.samples.indices, first)


def unchanged(item: object) -> object:
    """The identity, as a `collate_fn`: readers return whole batches."""
    return item


def leave_signals(worker: int) -> None:
    """Have a worker ignore the signals that reach a whole process group (from Ctrl-C, schedulers, torchrun):
    the main process finishes its step, saves, and ends its workers. A worker whose parent is gone exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _to_batch(reads: Reads, places: np.ndarray, captions: list[str | None]) -> Batch:
    return Batch(
        images=to_float(reads.pixels),
        labels=torch.from_numpy(reads.labels),
        captions=captions,
        all_captions=reads.captions,
        sample_indices=torch.from_numpy(places.astype(np.int64)),
        image_indices=torch.from_numpy(reads.indices),
        mirrored=reads.samples.mirrored,
    )


def to_float(pixels: np.ndarray) -> Tensor:
    """(B, C, H, W) float32 in [-1, 1] from (B, H, W, C) uint8."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
