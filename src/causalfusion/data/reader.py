"""Reading images that may be damaged: those are replaced, counted and named; too many of them stop the run.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from causalfusion.config.sizes import Fit
from causalfusion.data.source import Example, ImageSource, UnreadableImage
from causalfusion.data.transforms import fit_image
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed

MAX_UNREADABLE = 0.01
"""Fraction of the images that may be unreadable."""
FEW_UNREADABLE = 5
"""Number of images that may be unreadable in any set, if they are at most a quarter of it."""
MIN_READ = 100
"""Images to read before their unreadable fraction is trusted; replacements to try before giving up."""
KEPT_BYTES = 2**28
"""Largest set, in bytes of its cropped images, that is kept in memory."""
_HOPELESS = 0.1
"""Unreadable fraction of the images read so far at which a run stops at once."""


class Samples(NamedTuple):
    """The images that a batch asks for."""

    indices: np.ndarray
    """(B,) int64 indices into the source."""
    mirrored: np.ndarray
    """(B,) bool: mirror the image."""
    epochs: np.ndarray
    """(B,) int64 epoch, on which the caption that is drawn depends."""

    @classmethod
    def plain(cls, indices: np.ndarray) -> Samples:
        """These, as they are in epoch 0."""
        indices = np.asarray(indices, np.int64)
        return cls(indices, np.zeros(len(indices), bool), np.zeros(len(indices), np.int64))


@dataclass(frozen=True)
class Reads:
    """A batch as a worker returns it, in arrays: they are cheap to send to another process."""

    pixels: np.ndarray
    """(B, H, W, C) uint8."""
    labels: np.ndarray
    """(B,) int64 class labels; 0 for data without labels."""
    captions: list[tuple[str, ...]]
    """All captions of each image."""
    samples: Samples
    """The request."""
    indices: np.ndarray
    """(B,) int64 indices into the source of the images that were read, replacements included."""
    failures: list[tuple[int, str]]
    """(index into the source, name and reason) of each unreadable image that was tried."""


Readings = TypeVar("Readings")
Readable = TypeVar("Readable")
Failures = list[tuple[int, str]]


class ReplacingReader(Dataset, ABC, Generic[Readings]):
    """Reads the examples of a batch. One that cannot be read is replaced by another of the indices `pool`,
    chosen by its own index alone: every process chooses the same."""

    examples: ClassVar[str]
    """Word for them in messages."""

    def __init__(self, pool: np.ndarray) -> None:
        self.pool = pool

    def __getitem__(self, samples: Samples) -> Readings | UserError:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.read(samples)
        except UserError as error:  # returned, as a DataLoader would wrap a raised one in a traceback
            return error

    @abstractmethod
    def read(self, samples: Samples) -> Readings: ...

    def first_readable(
        self,
        index: int,
        read: Callable[[int], Readable],
        failures: Failures,
        narrow: Callable[[np.ndarray], np.ndarray] = lambda pool: pool,
    ) -> tuple[int, Readable]:
        """(index, what `read` gave) of this example or its replacement, which is one of the `narrow` pool.
        Raises UserError if none can be read."""
        current, pool = index, self.pool
        for attempt in range(MIN_READ):
            try:
                return current, read(current)
            except UnreadableImage as error:
                failures.append((current, str(error)))
            # Drawn from all of the data, as neighbours tend to be damaged together, up to a whole shard.
            pool = narrow(pool) if attempt == 0 else pool
            current = int(pool[derive_seed(index, "replacement", attempt) % len(pool)])
        raise UserError(
            f"none of {MIN_READ} {self.examples} tried can be read, the last: {failures[-1][1]}; repair the "
            "data"
        )


class Reader(ReplacingReader[Reads]):
    """Reads images of `source`, brought to size as `fit` says. With `grids` (N, 2), by index into the source,
    the replacement of an image has the same grid.

    The cropped images of a small set are kept in memory: decoding large photographs takes far longer than
    training a small model on them.
    """

    examples = "images"

    def __init__(
        self, source: ImageSource, fit: Fit, pool: np.ndarray, grids: np.ndarray | None = None
    ) -> None:
        super().__init__(pool)
        self.source, self.fit, self.grids = source, fit, grids
        self._keeps = 0 < 3 * (fit.max_area or fit.height * fit.width) * len(pool) <= KEPT_BYTES
        self._kept: dict[int, Example] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the kept images: another process reads them itself."""
        return {**self.__dict__, "_kept": {}}

    def read(self, samples: Samples) -> Reads:
        failures: Failures = []
        found, examples, images = [], [], []
        for index, mirror in zip(samples.indices.tolist(), samples.mirrored.tolist(), strict=True):
            used, example = self._read(index, failures)
            found.append(used)
            examples.append(example)
            images.append(example.image[:, ::-1] if mirror else example.image)
        return Reads(
            pixels=stacked(images, found),
            labels=np.array([example.label or 0 for example in examples], np.int64),
            captions=[example.captions for example in examples],
            samples=samples,
            indices=np.array(found, np.int64),
            failures=failures,
        )

    def _read(self, index: int, failures: Failures) -> tuple[int, Example]:
        def of_same_grid(pool: np.ndarray) -> np.ndarray:
            return pool if self.grids is None else pool[(self.grids[pool] == self.grids[index]).all(1)]

        return self.first_readable(index, self._example, failures, of_same_grid)

    def _example(self, index: int) -> Example:
        """One image with its label and captions, cropped. Raises UnreadableImage."""
        if index in self._kept:
            return self._kept[index]
        example = self.source.read(index)
        image = fit_image(example.image, self.fit)
        if image is None:
            height, width = example.image.shape[:2]
            raise UnreadableImage(str(index), f"its {width}x{height} pixels are less than one token")
        example = replace(example, image=image)
        if self._keeps:
            self._kept[index] = example
        return example


class Health:
    """Counts the unreadable among `num_images` images. A warning names each once; too many stop the run."""

    def __init__(self, num_images: int) -> None:
        self.num_images, self.num_read = num_images, 0
        self.bad: dict[int, str] = {}

    def note(self, num_read: int, failures: Sequence[tuple[int, str]]) -> None:
        """Record that `num_read` images were read and that `failures` could not be. Raises UserError if too
        many images are unreadable."""
        self.num_read += num_read + len(failures)
        for index, name in failures:
            if index not in self.bad:
                self.bad[index] = name
                warn_unreadable(name, f" ({len(self.bad)} so far)")
                self._stop_if_too_many()

    def _stop_if_too_many(self) -> None:
        # Relative to all images, as the two bad ones of a thousand may well be among the first hundred.
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
    """The number of images that may be unreadable in a set of `num_images`."""
    return max(int(MAX_UNREADABLE * num_images), min(FEW_UNREADABLE, num_images // 4))


def warn_unreadable(name: str, count: str = "") -> None:
    """Warn about an unreadable image; `name` includes the reason."""
    warnings.warn(f"skipped an image that cannot be read{count}: {name}", stacklevel=3)


def stacked(images: Sequence[np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """(B, H, W, C) uint8 of the images of these indices. Raises UserError for different shapes."""
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
