"""Offsets and sizes of the files inside an uncompressed tar, found without reading the files."""

from __future__ import annotations

import mmap
import tarfile
from pathlib import Path
from typing import NamedTuple

from causalfusion.errors import printable

_BLOCK = 512
_END = bytes(_BLOCK)


class Member(NamedTuple):
    name: str
    offset: int
    """Offset of the content, in bytes from the start of the tar."""
    size: int
    """Bytes of the content; -1 for a link or device."""


class DamagedTar(Exception):
    """A tar that is cut short, or whose headers state wrong sizes."""


def list_members(path: Path) -> list[Member]:
    """The members of an uncompressed tar, in order, without directories. Raises DamagedTar or OSError."""
    if path.stat().st_size == 0:
        raise DamagedTar("the file is empty")
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        members = _scan(content)
        return _read_any(path, content) if members is None else members


def _scan(content: mmap.mmap) -> list[Member] | None:
    """The members of a tar whose headers are all of the plain ustar kind, ten times as fast as `tarfile`;
    None if there is any other."""
    members, start = [], 0
    while True:
        header = content[start : start + _BLOCK]
        if header == _END:
            return members
        kind, is_posix = header[156:157], header[257:263] == b"ustar\0"
        if kind not in (b"0", b"\0", b"5") or not (is_posix or header[257:265] == b"ustar  \0"):
            return None
        digits = header[124:136].rstrip(b" \0")
        if digits.strip(b"01234567") or not digits:  # base 256, for files over 8 GiB, or damage
            return None
        name, size = header[:100].partition(b"\0")[0], int(digits, 8)
        prefix = header[345:500].partition(b"\0")[0] if is_posix else b""
        if kind != b"5":
            full = prefix + b"/" + name if prefix else name
            members.append(Member(full.decode("utf-8", "surrogateescape"), start + _BLOCK, size))
        start += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _read_any(path: Path, content: mmap.mmap) -> list[Member]:
    """The members of any tar, by way of `tarfile`."""
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                # Checked before tarfile seeks on: a negative size would send it into an endless loop.
                if info.size < 0 or (not info.issparse() and info.offset_data + info.size > len(content)):
                    size = str(info.size) if abs(info.size) < 10**15 else f"{float(info.size):.0e}"
                    raise DamagedTar(
                        f"{printable(info.name)} is said to have {size} bytes, the file has {len(content)}"
                    )
                if info.issparse():
                    raise DamagedTar(
                        f"{printable(info.name)} is stored as a sparse file, which is not supported"
                    )
                if info.isfile():
                    members.append(Member(info.name, info.offset_data, info.size))
                elif not info.isdir():
                    members.append(Member(info.name, info.offset_data, -1))
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise DamagedTar(str(error) or type(error).__name__) from error
    # tarfile treats a damaged header, or the end of a truncated file, as the end of the archive.
    if content[end : end + _BLOCK] != _END:
        raise DamagedTar(f"no end of the archive after {len(members)} files")
    return members
