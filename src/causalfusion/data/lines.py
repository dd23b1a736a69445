"""Random access to the lines of a text file that is not held in memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class LineFile:
    """The non-blank lines of a file. Memory holds only their offsets (24 bytes per line)."""

    def __init__(self, file: Path) -> None:
        """Raises OSError for a file that cannot be read."""
        self.file = file.absolute()
        places, offset = array("q"), 0
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.isspace():
                    places.extend((offset, len(line), number))
                offset += len(line)
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        offset, size, _ = self._places[index].tolist()
        # Opened each time (a few microseconds), so that workers share no file handles.
        with open(self.file, "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, offset)

    def __iter__(self) -> Iterator[bytes]:
        """All lines, in one pass over the file."""
        with open(self.file, "rb") as stream:
            yield from (line for line in stream if not line.isspace())

    def number(self, index: int) -> int:
        """The line's number in the file as editors show it: counted from 1, blank lines included."""
        return int(self._places[index, 2])
