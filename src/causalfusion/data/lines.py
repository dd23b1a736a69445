"""Random access to the lines of a text file that is not held in memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class LineFile:
    """The lines of a file that are not blank: of each only its place is kept (24 bytes)."""

    def __init__(self, file: Path) -> None:
        """Raises OSError."""
        self.file = file.absolute()
        places, at = array("q"), 0
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.isspace():
                    places.extend((at, len(line), number))
                at += len(line)
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        offset, size, _ = self._places[index].tolist()
        # Opened each time (some microseconds): no handles to share with workers.
        with open(self.file, "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, offset)

    def __iter__(self) -> Iterator[bytes]:
        """All of them in one pass."""
        with open(self.file, "rb") as stream:
            yield from (line for line in stream if not line.isspace())

    def number(self, index: int) -> int:
        """Of this line in the file, counted from 1, blank ones included: as editors show it."""
        return int(self._places[index, 2])
