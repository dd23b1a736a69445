"""Where the images of `sample` lie while they are made: on the disk, each file whole, never all in memory.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from causalfusion.errors import UserError
from causalfusion.files import map_array, replace_file, write_whole
from causalfusion.generate.out_folder import PART, image_name
from causalfusion.generate.read import to_picture

TAG = "causalfusion"
"""The text of a PNG that says of which set it is."""
_PART = re.compile(rf"{re.escape(PART)}(\d+)-(\d+)\.npy")


class Store(Protocol):
    def has(self) -> set[int]:
        """The indices of the images that are there."""
        ...

    def write(self, indices: Sequence[int], pixels: np.ndarray) -> None:
        """(B, H, W, C) uint8, each file whole."""
        ...

    def read(self, indices: range) -> np.ndarray:
        """(B, H, W, C) uint8; images of several sizes in the middle of white ones of one size."""
        ...

    def close(self) -> None:
        """Remove what is of no use once all is put together."""
        ...


class PngStore:
    """A PNG for each image: what the user asked for is the store too."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def has(self) -> set[int]:
        names = {entry.name for entry in os.scandir(self.folder)}
        stems = (name.removesuffix(".png") for name in names)
        # Another's 7.png, or folder 7, is no image of this set.
        return {int(stem) for stem in stems if stem.isdecimal() and image_name(int(stem)) in names}

    def write(self, indices: Sequence[int], pixels: np.ndarray) -> None:
        for index, image in zip(indices, pixels, strict=True):
            replace_file(self.folder / image_name(index), png_of(image, self.identity))

    def read(self, indices: range) -> np.ndarray:
        from PIL import Image

        images = []
        for index in indices:
            path = self.folder / image_name(index)
            try:
                with Image.open(path, formats=["PNG"]) as image:
                    images.append(np.asarray(image))
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{path} cannot be read ({error}); remove it and run again") from None
        pixels = np.stack(_of_one_size(images))
        return pixels[..., None] if pixels.ndim == 3 else pixels

    def close(self) -> None:
        PartStore(self.folder).close()  # of a stopped run that asked for no PNGs


class PartStore:
    """A hidden file for each batch, where no PNGs are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _parts(self) -> list[tuple[range, Path]]:
        found = [(_PART.fullmatch(entry.name), Path(entry.path)) for entry in os.scandir(self.folder)]
        parts = [(range(int(match[1]), int(match[2])), path) for match, path in found if match]
        return sorted(parts, key=lambda part: part[0].start)

    def has(self) -> set[int]:
        return {index for indices, _ in self._parts() for index in indices}

    def write(self, indices: Sequence[int], pixels: np.ndarray) -> None:
        path = self.folder / f"{PART}{indices[0]:06d}-{indices[-1] + 1:06d}.npy"
        replace_file(path, lambda stream: np.save(stream, pixels, allow_pickle=False))

    def read(self, indices: range) -> np.ndarray:
        rows: dict[int, np.ndarray] = {}
        for held, path in self._parts():
            wanted = range(max(held.start, indices.start), min(held.stop, indices.stop))
            if len(wanted):
                part = _part(path, len(held))
                rows |= {index: np.array(part[index - held.start]) for index in wanted}
        return np.stack([rows[index] for index in indices])

    def close(self) -> None:
        for _, path in self._parts():
            path.unlink(missing_ok=True)


def open_store(folder: Path, identity: str, indices: Iterable[int], *, as_png: bool) -> Store:
    """Where the images with these indices lie: in PNGs where they are asked for, or some of the set, which a
    run goes on from, are PNGs already."""
    pngs, parts = PngStore(folder, identity), PartStore(folder)
    return pngs if as_png or not pngs.has().isdisjoint(indices) else parts


def _of_one_size(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images (H, W) or (H, W, C), smaller ones in the middle of white."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    framed = []
    for image in images:
        down, right = height - image.shape[0], width - image.shape[1]
        around = [(down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0)]
        framed.append(np.pad(image, around[: image.ndim], constant_values=255))
    return framed


def _part(path: Path, count: int) -> np.ndarray:
    """`count` images (count, H, W, C) uint8 that an earlier command left."""
    try:
        part = map_array(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); it is damaged: remove it and run again") from None
    if part.ndim != 4 or len(part) != count or part.dtype != np.uint8:
        raise UserError(
            f"{path} is {part.dtype} of shape {part.shape}; it is damaged: remove it and run again"
        )
    return part


def runs_of(indices: Iterable[int], batch_size: int) -> Iterator[range]:
    """Sorted indices as ranges without gaps, of at most `batch_size` each."""
    start = stop = None
    for index in indices:
        if start is None or stop is None:
            start, stop = index, index + 1
        elif index == stop and stop - start < batch_size:
            stop += 1
        else:
            yield range(start, stop)
            start, stop = index, index + 1
    if start is not None and stop is not None:
        yield range(start, stop)


def png_of(pixels: np.ndarray, identity: str = "") -> bytes:
    """One image (H, W, 1 or 3) uint8 as a PNG; `identity` says of which set it is."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if identity:
        info.add_text(TAG, identity)
    stream = io.BytesIO()
    to_picture(pixels).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def write_npz(path: Path, store: Store, batches: Sequence[range], labels: Sequence[int]) -> None:
    """ADM's format (arr_0 images, arr_1 labels), batch by batch: what is in memory is one batch."""

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w", allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                for place, batch in enumerate(batches):
                    pixels = np.ascontiguousarray(store.read(batch))
                    if place == 0:
                        shape = (len(labels), *pixels.shape[1:])
                        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(pixels.data)
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, np.int64), allow_pickle=False)

    write_whole(path, write)
