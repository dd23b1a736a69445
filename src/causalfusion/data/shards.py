"""Finding the shards that a path means, and decompressing them.

A plain .tar is read in place. A compressed one is unpacked once into the user's cache folder
(`XDG_CACHE_HOME`, or ~/.cache), under a name that contains a hash of its path, size and time.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from causalfusion.errors import UserError, printable
from causalfusion.files import cache_folder, hash_of, remove_leftovers, temporary_name

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNSUPPORTED = (".zip", ".tar.lz4", ".7z", ".rar")
"""Endings of archives that are refused with a message of their own."""
_MAX_SHARDS = 1_000_000
_MAX_RATIO = 100
_SMALL = 2**28
"""Bytes. A shard that unpacks to more, and to more than `_MAX_RATIO` times its size, is refused as a bomb."""
_KEEP_FREE = 2**28
"""Bytes of disk space that unpacking leaves free."""


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


def find_shards(pattern: str) -> list[Path]:
    """The shards that a folder, a glob, or braces such as train-{000000..000009}.tar stand for, sorted. A
    shard that is there both packed and unpacked is read unpacked. Raises UserError."""
    place = Path(pattern)
    if place.is_dir():
        inside = [path for path in place.iterdir() if not path.name.startswith(".")]
        found = [path for path in inside if path.name.endswith((".tar", *PACKED))]
        found = found or [path for path in inside if path.name.endswith(UNSUPPORTED)]
    elif place.exists():
        found = [place]
    else:
        found = []
        for name in expand_braces(pattern):
            matches = [Path(name)] if Path(name).is_file() else [Path(match) for match in glob.glob(name)]
            if not matches and name != pattern:
                raise UserError(f"shard {printable(name)} does not exist; data.path is {printable(pattern)}")
            found += matches
    if not found:
        raise UserError(f"no shards match data.path {printable(pattern)}; expected .tar or .tar.gz files")
    for path in found:
        if path.name.endswith(UNSUPPORTED):
            raise UserError(
                f"shard {printable(path)} is not supported: it is no tar; unpack it into a folder, or pack "
                "the files as .tar"
            )
        if not path.is_file():
            raise UserError(f"shard {printable(path)} is not a file; expected .tar or .tar.gz files")
    unpacked = {path for path in found if path.suffix == ".tar"}
    return sorted(
        {path for path in found if path in unpacked or path.with_name(_stem(path) + ".tar") not in unpacked}
    )


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern such as a{00..12}b or a{x,y}b means; numbers have the width of the first."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    first, last, choices = match.groups()
    if choices is None:
        if len(last) > 12 or int(last) - int(first) >= _MAX_SHARDS:
            raise UserError(f"data.path {printable(pattern)} means more than {_MAX_SHARDS:,} shards")
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        parts = choices.split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [before + part + rest for part in parts for rest in expand_braces(after)]


def joined(paths: Sequence[str]) -> str:
    """The pattern that matches exactly these paths, whose names have neither commas nor braces."""
    folders = {os.path.join(os.path.dirname(path), "") if os.path.dirname(path) else "" for path in paths}
    common = folders.pop() if len(folders) == 1 else ""
    return glob.escape(common) + "{" + ",".join(glob.escape(path[len(common) :]) for path in paths) + "}"


def _stem(path: Path) -> str:
    name = path.name
    return next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name.removesuffix(".tar"))


def as_plain_tar(path: Path) -> Path:
    """The shard itself, or its decompressed copy in the cache, which is made atomically. Raises UserError."""
    if not path.name.endswith(PACKED):
        return path
    status = path.stat()
    root = cache_folder("shards")
    plain = root / f"{hash_of([path.resolve(), status.st_size, status.st_mtime_ns])}-{_stem(path)}.tar"
    if plain.is_file():
        return plain
    temporary = temporary_name(plain)
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        target = temporary.open("xb")
    except OSError as error:
        raise UserError(_no_room(path, root, error)) from error
    try:
        with target:
            packed = _open_packed(path)
            try:
                _unpack(packed, target, path, root, status.st_size)
            finally:
                packed.close()
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, plain)
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"shard {printable(path)} cannot be unpacked ({error}); it is damaged or cut short: copy it again"
        ) from error
    except OSError as error:
        if error.errno is None:  # raised by bz2 for damaged data, not by the disk
            raise UserError(
                f"shard {printable(path)} cannot be unpacked ({error}); it is damaged: copy it again"
            ) from error
        raise UserError(_no_room(path, root, error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return plain


def _open_packed(path: Path) -> _Reader:
    if path.name.endswith(".tar.bz2"):
        return bz2.open(path, "rb")
    if path.name.endswith(".tar.xz"):
        return lzma.open(path, "rb")
    if not path.name.endswith(".tar.zst"):
        return gzip.open(path, "rb")
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]  # Python 3.14
    except ImportError:
        pass
    else:
        return _Zstandard(zstd.open(path, "rb"), zstd.ZstdError)
    try:
        import zstandard  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"shard {printable(path)} is not supported without the package zstandard; pip install zstandard, "
            "or unpack it: zstd -d"
        ) from None
    return _Zstandard(zstandard.open(path, "rb"), zstandard.ZstdError)


class _Zstandard:
    """A stream that raises ValueError for damaged data."""

    def __init__(self, stream: _Reader, error: type[Exception]) -> None:
        self._stream, self._error = stream, error

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except self._error as error:
            raise ValueError(str(error)) from error

    def close(self) -> None:
        self._stream.close()


def _unpack(packed: _Reader, target: BinaryIO, path: Path, root: Path, packed_size: int) -> None:
    """Copy the stream piece by piece. Raises UserError if it grows beyond bounds or would fill the disk."""
    written, checked = 0, 0
    while piece := packed.read(2**20):
        written += len(piece)
        if written > max(_SMALL, _MAX_RATIO * packed_size):
            raise UserError(
                f"shard {printable(path)} has {packed_size:,} bytes and unpacks to more than {written:,}; "
                f"expected at most {_MAX_RATIO} times as many: unpack it yourself if it is right"
            )
        if written - checked >= 2**26:
            checked = written
            if shutil.disk_usage(root).free < _KEEP_FREE:
                raise UserError(_no_room(path, root, "the disk is nearly full"))
        target.write(piece)


def _no_room(path: Path, root: Path, error: object) -> str:
    remedy = "set XDG_CACHE_HOME to a folder with room, or unpack it yourself"
    return f"shard {printable(path)} cannot be unpacked into {root} ({error}); {remedy}"
