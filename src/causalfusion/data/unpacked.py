"""Encoded pictures unpacked into the user's cache folder, one after the other in one file: any of them is
then read in microseconds, which the rows of a compressed table are not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.errors import UserError
from causalfusion.files import write_whole


class Unpacked:
    """The pictures of a file that `unpack` wrote, and beside it (.npy) where each begins."""

    def __init__(self, blob: Path) -> None:
        self.blob = blob
        self._offsets: np.ndarray = np.load(_places_of(blob))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def content(self, index: int) -> bytes:
        """An encoded picture; empty for a row without one. Raises OSError."""
        begin, end = self._offsets[index:][:2].tolist()
        # Opened each time (a few microseconds), so that workers share no handles.
        with self.blob.open("rb") as stream:
            stream.seek(begin)
            return stream.read(end - begin)


def is_unpacked(blob: Path) -> bool:
    return blob.is_file() and _places_of(blob).is_file()


def unpack(blob: Path, contents: Iterable[bytes], what: str) -> Unpacked:
    """The pictures of a file, which is written first if it is not there; `what`: their origin in messages.
    Raises UserError where the disk refuses it."""
    if is_unpacked(blob):
        return Unpacked(blob)
    ends = [0]

    def write(stream: Any) -> None:
        for content in contents:
            stream.write(content)
            ends.append(ends[-1] + len(content))

    try:
        write_whole(blob, write)
        write_whole(_places_of(blob), lambda stream: np.save(stream, np.array(ends, np.int64)))
    except OSError as error:
        raise UserError(
            f"the pictures in {what} cannot be unpacked into {blob.parent} ({error.strerror or error}); "
            "set XDG_CACHE_HOME to a folder with room"
        ) from error
    return Unpacked(blob)


def _places_of(blob: Path) -> Path:
    return blob.with_suffix(".npy")
