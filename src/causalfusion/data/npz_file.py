"""Safe reading of .npz files: array sizes are checked before memory is allocated.

An array that is stored uncompressed is memory-mapped, not read.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from causalfusion.errors import UserError, printable

_MAX_RATIO = 200
_SMALL = 2**28
"""Bytes. A larger array that is more than `_MAX_RATIO` times its compressed size is refused as a bomb."""
_MAX_HEADER = 2**16
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
    SyntaxError,
    TypeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that zipfile and numpy raise for damaged files."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int
    """Offset of the values, in bytes from the start of the member."""


class NpzFile:
    """The arrays of a file by name; an array is read when it is asked for, before that only its header.
    Raises UserError for a file that is damaged or no .npz, or whose headers state wrong sizes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members: dict[str, _Member] = self._guarded(self._open)

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def shape(self, name: str) -> tuple[int, ...]:
        return self._members[name].shape

    def __getitem__(self, name: str) -> np.ndarray:
        """The array: a read-only memory map, or in memory if it is compressed."""
        member = self._members[name]
        return self._guarded(lambda: self._read(name, member))

    def _open(self) -> dict[str, _Member]:
        with zipfile.ZipFile(self.path) as archive:
            return {
                info.filename.removesuffix(".npy"): self._header(archive, info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }

    def _header(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
        name = printable(info.filename.removesuffix(".npy"))
        with archive.open(info) as stream:
            head = io.BytesIO(stream.read(_MAX_HEADER))
        version = np.lib.format.read_magic(head)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(head)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        # In Python's integers, as the product of a forged shape may overflow 64 bits.
        declared = math.prod(map(int, shape)) * dtype.itemsize
        held = info.file_size - head.tell()
        if min(shape, default=0) < 0 or declared != held:
            raise ValueError(f"{name} says it has {declared:,} bytes of {shape}, the file holds {held:,}")
        packed = info.compress_type != zipfile.ZIP_STORED
        if packed and info.file_size > max(_SMALL, _MAX_RATIO * info.compress_size):
            raise ValueError(
                f"{name} has {info.compress_size:,} bytes and would unpack to {info.file_size:,}; save it "
                "uncompressed, with numpy.savez, if it is right"
            )
        if not packed and info.file_size > self.path.stat().st_size:
            raise ValueError(f"{name} says it has {declared:,} bytes, more than the file")
        return _Member(info, tuple(map(int, shape)), bool(fortran), dtype, head.tell())

    def _read(self, name: str, member: _Member) -> np.ndarray:
        info = member.info
        order = "F" if member.fortran else "C"
        if info.compress_type == zipfile.ZIP_STORED and math.prod(member.shape):
            return np.memmap(
                self.path, member.dtype, "r", self._place(info) + member.start, member.shape, order
            )
        from causalfusion.machine.runtime import available_memory  # imports torch, which takes seconds

        available = available_memory()
        if info.file_size > available:
            raise UserError(
                f"{printable(self.path)}: {name} unpacks to {info.file_size:,} bytes, {available:,.0f} of "
                "memory are free; save it uncompressed, with numpy.savez: it is then read where it lies"
            )
        with zipfile.ZipFile(self.path) as archive, archive.open(info) as stream:
            stream.read(member.start)
            values = np.empty(info.file_size - member.start, np.uint8)
            filled = 0
            while piece := stream.read(2**24):
                values[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
        if filled != len(values):
            raise ValueError(f"{name} is cut short")
        return values.view(member.dtype).reshape(member.shape, order=order)

    def _place(self, info: zipfile.ZipInfo) -> int:
        """The offset of a stored member's content, in bytes from the start of the file."""
        with open(self.path, "rb") as stream:
            stream.seek(info.header_offset)
            header = stream.read(30)
            if header[:4] != b"PK\x03\x04":
                raise ValueError("a member has no header")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > self.path.stat().st_size:
            raise ValueError("a member goes beyond the file")
        return start

    def _guarded(self, read: Callable[[], T]) -> T:
        """The result of `read`, with the errors of damaged files turned into UserErrors."""
        try:
            return read()
        except UserError:
            raise
        except _DAMAGE as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{printable(self.path)} cannot be read as .npz ({printable(reason)}); it is damaged, cut "
                "short or no .npz"
            ) from error
