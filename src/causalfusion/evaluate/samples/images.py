"""Sets of images to measure, read batch by batch: their protocol, arrays in memory, and data sets.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from causalfusion.data.loader import leave_signals, unchanged
from causalfusion.data.reader import Health
from causalfusion.data.source import Example, ImageSource, UnreadableImage
from causalfusion.data.transforms import crop_to
from causalfusion.errors import UserError
from causalfusion.files import hash_of
from causalfusion.rng import derive_generator

Shape = tuple[int, int, int]
"""(H, W, C)."""


@dataclass(frozen=True)
class ImageBatch:
    indices: np.ndarray
    """Places of the images in the set, (B,) int64."""
    pixels: np.ndarray
    """Images, (B, H, W, C) uint8."""
    labels: np.ndarray | None
    """Labels, (B,) int64; None where there are none."""


class ImageSet(Protocol):
    name: str
    shape: Shape
    """Shape of every image."""
    class_names: list[str]
    """Names of the classes; empty where they are unknown."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Short hash that identifies the images; cheap to compute."""
        ...

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[ImageBatch]:
        """Yields every image once; process `rank` of `world_size` gets every world_size-th batch."""
        ...


class ArrayImages:
    """Images (N, H, W, C) uint8 in memory, with or without labels (N,). Raises UserError for other arrays."""

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        name: str = "images",
        class_names: Sequence[str] = (),
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not len(pixels):
            raise UserError(
                f"{name} are {pixels.dtype} of shape {pixels.shape}; expected uint8 0..255 of shape "
                "(N, H, W, 1 or 3), N > 0"
            )
        if labels is not None and np.shape(labels) != (len(pixels),):
            raise UserError(f"{np.shape(labels)} labels for {len(pixels)} {name}; expected one for each")
        self.name, self.class_names = name, list(class_names)
        self.pixels = pixels
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.shape: Shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        return hash_of([self.shape, self.pixels.tobytes().hex(), self.labels])

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[ImageBatch]:
        for places in _batch_places(np.arange(len(self)), batch_size, rank, world_size):
            yield ImageBatch(
                places, self.pixels[places], None if self.labels is None else self.labels[places]
            )


class SourceImages:
    """Images of a data set: all of them, or a fixed random choice of `count`.

    Images are cropped and scaled to `image_size`, the side of a square or (height, width), as in training (0:
    left as they are); grey ones get three equal channels where `channels` is 3. A damaged image raises
    UserError; with `skip_damaged` a few are reported and left out, as in training.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int | tuple[int, int] = 0,
        channels: int = 0,
        count: int | None = None,
        num_workers: int = 0,
        skip_damaged: bool = False,
    ) -> None:
        self.name, self.class_names = source.name, list(source.class_names)
        self._source, self._size, self._channels = source, size_of(image_size), channels
        self._num_workers, self._skip_damaged = num_workers, skip_damaged
        if count is not None and count > len(source):
            raise UserError(
                f"{source.name} holds {len(source)} images, and {count} are asked for; ask for fewer"
            )
        self._places = draw_places(len(source), count)
        self.native_shape: Shape = self._first_shape()
        """Shape of the first image before it is cropped."""
        self.shape: Shape = self._shape_of(self._fit(np.zeros(self.native_shape, np.uint8)))

    def __len__(self) -> int:
        return len(self._places)

    def fingerprint(self) -> str:
        return hash_of([self._source.fingerprint(), len(self), self.shape])

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[ImageBatch]:
        shares = list(_batch_places(np.arange(len(self)), batch_size, rank, world_size))
        health = Health(len(self))
        loader = DataLoader(
            _BatchDataset(self, shares),
            shuffle=False,
            batch_size=None,
            num_workers=min(self._num_workers, len(shares)),
            collate_fn=unchanged,
            worker_init_fn=leave_signals,
            generator=torch.Generator(),  # without it the loader draws from the global generator
        )
        for read in loader:
            if isinstance(read, UserError):
                raise read
            batch, failures = read
            health.note(len(batch.indices), failures)
            if len(batch.indices):
                yield batch

    def read(self, place: int) -> Example:
        """One image of the set, cropped. Raises UnreadableImage, or UserError for another shape."""
        example = self._source.read(int(self._places[place]))
        image = self._fit(example.image)
        if image.shape != self.shape:
            (height, width, channels), (own_height, own_width, own_channels) = image.shape, self.shape
            raise UserError(
                f"image {place} of {self.name} is {width}x{height} with {channels} channels, others are "
                f"{own_width}x{own_height} with {own_channels}; expected one size: give --image-size"
            )
        return Example(image, example.label)

    def read_batch(self, places: np.ndarray) -> tuple[ImageBatch, list[tuple[int, str]]]:
        """The readable images of these places, and (place, name) of the damaged ones."""
        failures: list[tuple[int, str]] = []
        kept: list[int] = []
        examples: list[Example] = []
        for place in places.tolist():
            try:
                examples.append(self.read(place))
                kept.append(place)
            except UnreadableImage as error:
                if not self._skip_damaged:
                    raise UserError(
                        f"an image of {self.name} cannot be read: {error}; remove or repair it"
                    ) from None
                failures.append((place, str(error)))
        pixels = np.stack([e.image for e in examples]) if examples else np.empty((0, *self.shape), np.uint8)
        labels = np.array([e.label or 0 for e in examples], np.int64) if self.class_names else None
        return ImageBatch(np.array(kept, np.int64), pixels, labels), failures

    def _fit(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, C) cropped and scaled, with the channels asked for."""
        if self._size is not None:
            image = crop_to(image, *self._size)
        if self._channels == 3 and image.shape[2] == 1:
            return np.repeat(image, 3, axis=2)
        return image

    def _shape_of(self, image: np.ndarray) -> Shape:
        height, width, channels = image.shape
        return height, width, channels

    def _first_shape(self) -> Shape:
        """Shape of the first readable image. Raises UserError if there is none among the first 100."""
        reasons = []
        for place in self._places[:100].tolist():
            try:
                return self._shape_of(self._source.read(place).image)
            except UnreadableImage as error:
                reasons.append(str(error))
                if not self._skip_damaged:
                    break
        raise UserError(f"no image of {self.name} can be read: {reasons[0]}; remove or repair it")


def size_of(image_size: int | tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) of the side of a square, or of itself; None for 0."""
    side = image_size
    return side if isinstance(side, tuple) else (side, side) if side else None


class _BatchDataset(Dataset):
    """The batches of a process, read by the workers of a DataLoader."""

    def __init__(self, images: SourceImages, shares: list[np.ndarray]) -> None:
        self.images, self.shares = images, shares

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, number: int) -> tuple[ImageBatch, list[tuple[int, str]]] | UserError:
        try:
            return self.images.read_batch(self.shares[number])
        except UserError as error:  # raised in a worker, it would come with a traceback
            return error


def draw_places(total: int, count: int | None) -> np.ndarray:
    """Rising places of all images, or of a fixed random choice of `count`. Raises UserError for none."""
    if count is None or count >= total:
        return np.arange(total)
    if count < 1:
        raise UserError(f"the number of images is {count}; expected at least 1")
    places = torch.randperm(total, generator=derive_generator(0, "subset"))[:count]
    return np.sort(places.numpy())


def _batch_places(places: np.ndarray, batch_size: int, rank: int, world_size: int) -> Iterator[np.ndarray]:
    """Yields the places of each batch of process `rank`."""
    for start in range(rank * batch_size, len(places), world_size * batch_size):
        yield places[start : start + batch_size]
