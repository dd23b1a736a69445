"""Sizes of the images of a data set, and the grids of tokens that they give."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from causalfusion.config import DataConfig
from causalfusion.config.sizes import Fit
from causalfusion.data.reader import Samples, allowed_unreadable, warn_unreadable
from causalfusion.data.source import ImageSource, UnreadableImage
from causalfusion.errors import UserError
from causalfusion.machine.progress import ProgressLine


@runtime_checkable
class SizedSource(Protocol):
    """A source that can tell the size of an image without decoding it."""

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels. Raises UnreadableImage."""
        ...


def check_one_size(data: DataConfig) -> None:
    """Raises UserError unless all images are squares of one side, or already have one size."""
    if not isinstance(data.image_size, int):
        raise UserError(f"data.image_size is {data.image_size}; expected the side of a square here, or 0")


def grids_of(source: ImageSource, fit: Fit, *, show_progress: bool = False) -> np.ndarray:
    """Rows and columns of tokens of every image, (N, 2) int32; 0 for one that cannot be read, or that is
    smaller than a token: a warning counts those. Raises UserError if too many cannot be read, or if no image
    is left."""
    grids = np.zeros((len(source), 2), np.int32)
    unreadable = small = 0
    line = ProgressLine(len(source), 0, enabled=show_progress and len(source) > 20_000)
    for index in range(len(source)):
        try:
            size = _size_of(source, index)
        except UnreadableImage as error:
            unreadable += 1
            if unreadable > allowed_unreadable(len(source)):
                raise UserError(
                    f"more than {unreadable - 1} of {len(source)} images cannot be read, the last: {error}; "
                    "remove or repair them"
                ) from None
            warn_unreadable(str(error), f" ({unreadable} so far)")
            continue
        fitted = fit.size_of(*size)
        if fitted is None:
            small += 1
        else:
            grids[index] = fitted[0] // fit.cell, fitted[1] // fit.cell
        if line.due():
            line.show(index, "sizes of the images")
    line.close()
    if small + unreadable == len(source):
        raise UserError(
            f"all {small} images are smaller than one token of {fit.cell}x{fit.cell} pixels; expected larger "
            "ones, or a smaller codec.patch_size"
        )
    if small:
        warnings.warn(
            f"left out {small} of {len(source)} images, which are smaller than one token of "
            f"{fit.cell}x{fit.cell} pixels",
            stacklevel=2,
        )
    return grids


def groups_of(grids: np.ndarray | None, indices: np.ndarray) -> list[np.ndarray]:
    """Positions in `indices` of images of one grid; all of them where all images have one size."""
    if grids is None:
        return [np.arange(len(indices))]
    _, group = np.unique(grids[indices], axis=0, return_inverse=True)
    return [np.flatnonzero(group.reshape(-1) == number) for number in range(group.max(initial=-1) + 1)]


def counts_of(grids: np.ndarray, indices: np.ndarray) -> dict[tuple[int, int], int]:
    """Number of the images `indices` by rows and columns of tokens."""
    found, counts = np.unique(grids[indices], axis=0, return_counts=True)
    return {(grid[0], grid[1]): count for grid, count in zip(found.tolist(), counts.tolist(), strict=True)}


def parts_of(
    places: np.ndarray, samples: Samples, grids: np.ndarray | None
) -> Iterator[tuple[np.ndarray, Samples]]:
    """The samples at these places of the stream, those of one grid together."""
    for rows in groups_of(grids, samples.indices):
        yield places[rows], Samples(*(part[rows] for part in samples))


def _size_of(source: ImageSource, index: int) -> tuple[int, int]:
    if isinstance(source, SizedSource):
        return source.image_size(index)
    height, width = source.read(index).image.shape[:2]
    return height, width
