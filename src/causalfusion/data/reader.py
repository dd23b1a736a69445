"""Reading images that may be damaged: the damaged are replaced, counted and named; too many of them stop.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from causalfusion.data.source import Example, ImageSource, UnreadableImage
from causalfusion.data.transforms import center_crop
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed

MAX_UNREADABLE = 0.01
"""Share of the images that may be unreadable."""
FEW_UNREADABLE = 5
"""So many may be unreadable of a small set too, if they are no more than a quarter of it."""
MIN_READ = 100
"""Images to read before their unreadable share says anything; replacements to try before giving up."""
KEPT_BYTES = 2**28
"""Cropped images of one set that stay in memory, at most."""
_HOPELESS = 0.1
"""Unreadable share at which a run stops before it has met MAX_UNREADABLE of all images."""


class Samples(NamedTuple):
    """What to read for a batch."""

    indices: np.ndarray
    """(B,) int64 places in the source."""
    mirrored: np.ndarray
    """(B,) bool."""
    epochs: np.ndarray
    """(B,) int64; the same image comes with another of its captions in another epoch."""


@dataclass(frozen=True)
class Reads:
    """A batch as it was read. Arrays, as these cross from a worker's process."""

    pixels: np.ndarray
    """(B, H, W, C) uint8."""
    labels: np.ndarray
    """(B,) int64; 0 where there are none."""
    captions: list[tuple[str, ...]]
    """All that each image has."""
    samples: Samples
    """What was asked for."""
    indices: np.ndarray
    """(B,) int64 places in the source of what was read, replacements included."""
    failures: list[tuple[int, str]]
    """Place in the source, and name with reason, of each unreadable image that was met."""


class Reader(Dataset):
    """Reads images of `source`, cropped to `image_size` (0: as they are). An unreadable one is replaced by
    one of `pool` that depends on its index alone: the same whoever reads it.

    Small sets stay in memory once they are cropped: large photographs take far longer to decode than a small
    model takes to train on them.
    """

    def __init__(self, source: ImageSource, image_size: int, pool: np.ndarray) -> None:
        self.source, self.image_size, self.pool = source, image_size, pool
        self._keeps = 0 < 3 * image_size**2 * len(pool) <= KEPT_BYTES
        self._kept: dict[int, Example] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads for itself."""
        return {**self.__dict__, "_kept": {}}

    def __getitem__(self, samples: Samples) -> Reads | UserError:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.read(samples)
        except UserError as error:  # a worker would wrap what it raises in a traceback: hand it over instead
            return error

    def read(self, samples: Samples) -> Reads:
        failures: list[tuple[int, str]] = []
        found, examples, images = [], [], []
        for index, mirror in zip(samples.indices.tolist(), samples.mirrored.tolist(), strict=True):
            used, example = self._read(index, failures)
            found.append(used)
            examples.append(example)
            images.append(example.image[:, ::-1] if mirror else example.image)
        return Reads(
            pixels=_stack(images, found),
            labels=np.array([example.label or 0 for example in examples], np.int64),
            captions=[example.captions for example in examples],
            samples=samples,
            indices=np.array(found, np.int64),
            failures=failures,
        )

    def _read(self, index: int, failures: list[tuple[int, str]]) -> tuple[int, Example]:
        """(index, image) of this one or of its replacement."""
        current = index
        for attempt in range(MIN_READ):
            try:
                return current, self._example(current)
            except UnreadableImage as error:
                failures.append((current, str(error)))
            # Anywhere in the data, as damage comes in runs; the next one might be as far as a shard away.
            current = int(self.pool[derive_seed(index, "replacement", attempt) % len(self.pool)])
        raise UserError(
            f"none of {MIN_READ} images tried can be read, the last: {failures[-1][1]}; repair the data"
        )

    def _example(self, index: int) -> Example:
        """Raises UnreadableImage."""
        if index in self._kept:
            return self._kept[index]
        example = self.source.read(index)
        if self.image_size:
            example = replace(example, image=center_crop(example.image, self.image_size))
        if self._keeps:
            self._kept[index] = example
        return example


class Health:
    """Counts what could not be read of `num_images`: each is named once, too many of them stop the run."""

    def __init__(self, num_images: int) -> None:
        self.num_images, self.num_read = num_images, 0
        self.bad: dict[int, str] = {}

    def note(self, num_read: int, failures: Sequence[tuple[int, str]]) -> None:
        """`num_read` images were read and, before that, these were not."""
        self.num_read += num_read + len(failures)
        for index, name in failures:
            if index not in self.bad:
                self.bad[index] = name
                warn_of(name, f" ({len(self.bad)} so far)")
                self._stop_if_too_many()

    def _stop_if_too_many(self) -> None:
        # Of all images, not of those read so far: the first hundred may well hold two bad ones of a thousand.
        total = self.num_images
        if self.num_read >= MIN_READ and len(self.bad) > _HOPELESS * self.num_read:
            total = min(total, self.num_read)
        if len(self.bad) > allowed_unreadable(total):
            first = "; ".join(list(self.bad.values())[:3])
            raise UserError(
                f"{len(self.bad)} of {total} images cannot be read, more than {allowed_unreadable(total)}: "
                f"{first}; remove or repair them"
            )


def allowed_unreadable(num_images: int) -> int:
    """How many images may be unreadable."""
    return max(int(MAX_UNREADABLE * num_images), min(FEW_UNREADABLE, num_images // 4))


def warn_of(name: str, count: str = "") -> None:
    """Name an unreadable image, and why, in a warning."""
    warnings.warn(f"skipped an image that cannot be read{count}: {name}", stacklevel=3)


def _stack(images: Sequence[np.ndarray], indices: Sequence[int]) -> np.ndarray:
    first = images[0].shape
    for image, index in zip(images, indices, strict=True):
        if image.shape != first:
            (height, width, channels), (first_height, first_width, first_channels) = image.shape, first
            raise UserError(
                f"image {index} is {width}x{height} with {channels} channels, image {indices[0]} "
                f"{first_width}x{first_height} with {first_channels}; expected one size: "
                "give --data.image-size"
            )
    return np.stack(images)
