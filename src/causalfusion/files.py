"""Atomic writing of files, locking of folders, memory-mapped arrays, and short hashes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from causalfusion.errors import UserError

LOCK_FILE = ".lock"
"""File in a locked folder with the id of the process that uses it."""
_HOST = re.sub(r"[^\w]", "-", socket.gethostname())[:40]
_TEMPORARY = re.compile(r"\.partial-.*\.(?P<host>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]{8}")
"""Name of a file that is being written. It contains the writing process, so that others can tell whether it
is left over."""


def write_whole(file: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: under a temporary name, flushed to the disk, then renamed.

    Readers find a complete file at any time. If several processes write it at once, the last one wins. A
    failure leaves nothing behind, and the next write into the folder removes the files of killed processes.
    Text is written as UTF-8; a missing folder is created. Raises OSError that names `file`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(file.parent)
    replace_file(file, content)


def replace_file(file: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """`write_whole` without the search for leftovers, which lists the folder; for folders of many files."""
    temporary = temporary_name(file)
    try:
        with temporary.open("xb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(
                    content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
                )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        with suppress(OSError):  # a read-only disk, whose own error names the file
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses, to be renamed to `path` when complete."""
    return path.with_name(f".partial-{path.name[:80]}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes of this machine that no longer run."""
    try:
        found = [entry for entry in os.scandir(folder) if entry.name.startswith(".partial-")]
    except OSError:
        return
    for entry in found:
        match = _TEMPORARY.fullmatch(entry.name)
        if match is None or match["host"] != _HOST or is_running(int(match["process"])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


def holds_anything(folder: Path) -> bool:
    """True if a folder holds more than a lock; leftovers of killed processes are removed first."""
    if not folder.is_dir():
        return False
    remove_leftovers(folder)
    return any(entry.name != LOCK_FILE for entry in os.scandir(folder))


def is_running(process: int) -> bool:
    """True if this machine runs a process with this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def in_use(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder that this process writes to; `what` describes the folder in messages.

    The lock ends with the process, however it ends; the file `.lock` contains the process's id. Folders that
    are created here are removed again if they stay empty, so that a refused command leaves nothing behind.
    Raises UserError if another process uses the folder.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        try:
            process = f"process {int((folder / '.lock').read_text())}"
        except (OSError, ValueError):
            process = "another process"
        raise UserError(
            f"{what} {folder} is in use by {process}; wait for it, stop it, or give another --out"
        ) from None
    except (OSError, NotImplementedError):  # a file system without locks
        yield
        return
    try:
        (folder / LOCK_FILE).write_text(f"{os.getpid()}\n")
        yield
    finally:
        if made and os.listdir(folder) == [".lock"]:
            (folder / LOCK_FILE).unlink()
        lock.release()  # otherwise the file stays: removing it could let two processes in at once
        with suppress(OSError):  # a folder that is not empty
            for path in made:
                path.rmdir()


def map_array(file: str | os.PathLike[str]) -> Any:
    """The array of an .npy file, memory-mapped, so that a wrong size in the header allocates no memory.
    Raises ValueError or OSError for a damaged file."""
    import numpy as np

    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, TypeError, OverflowError, EOFError, tokenize.TokenError) as error:  # damaged header
        raise ValueError(f"{file} is no array: {error}") from None


def cache_folder(name: str) -> Path:
    """The subfolder `name` of the user's cache folder, in `XDG_CACHE_HOME` or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "causalfusion" / name


def hash_of(parts: Iterable[object]) -> str:
    """16 hexadecimal digits of SHA-256 over the parts as text, which may have bytes that are not Unicode."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's contents, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def named_stamps(files: Iterable[Path]) -> Iterator[str | int]:
    """Name, size and time of the last change of each file, for a hash that tells whether one changed."""
    for file in files:
        yield file.name
        yield from stamp(file)


def stamp(file: str | os.PathLike[str]) -> tuple[int, int]:
    """(size in bytes, time of the last change in ns) of a file, to tell cheaply whether it changed; (-1, -1)
    if it is missing."""
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
