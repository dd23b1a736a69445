"""Files at URLs (https://, s3://, gs://, hf://, ...): fetched whole into the user's cache folder, and read
there.

Access is that of `fsspec`, whose packages for a protocol (s3fs, gcsfs, aiohttp) and settings apply. A file is
fetched once: it is fetched again where the size or the version that its place tells has changed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from causalfusion.data.shards import expand_braces, joined
from causalfusion.errors import UserError, brief, printable
from causalfusion.files import cache_folder, hash_of, write_whole
from causalfusion.machine.progress import tell

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_VERSION = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created", "updated")
"""Fields by which file systems tell one version of a file from another."""
_PIECE = 2**20
_KEEP_FREE = 2**28
"""Bytes of disk space that fetching leaves free."""


def is_url(path: str) -> bool:
    return _URL.match(path) is not None


def fetched(pattern: str, beside: Sequence[str] = ()) -> str:
    """The path, or pattern of paths, of local copies of the files at a URL, which may have braces
    (train-{000..009}.tar) or, where the place can be listed, * and ?. Files of the names `beside` are
    fetched too if they lie beside the first one in a folder. Raises UserError."""
    files: list[Path] = []
    folders = set[Path]()
    for url in expand_braces(pattern):
        system, place = _system(url)
        places = [place]
        if any(sign in place for sign in "*?[") and not _exists(system, place, url):
            places = sorted(_asked(url, lambda s=system, p=place: s.glob(p)))
            if not places:
                raise UserError(f"{printable(url)} matches no file; check data.path")
        for one in places:
            folder = _folder(url if places == [place] else _in_full(url, system, one))
            files.append(_fetch(system, one, folder))
            for name in beside if folder not in folders else ():
                other = one.rpartition("/")[0] + "/" + name
                if _exists(system, other, url):
                    _fetch(system, other, folder)
            folders.add(folder)
    return str(files[0]) if len(files) == 1 else joined([str(file) for file in files])


def _folder(url: str) -> Path:
    """The folder for copies of the files in a place, so that they lie side by side there too."""
    place = url.partition("?")[0].rpartition("/")[0]
    name = re.sub(r"[^\w.-]", "-", place.rpartition("/")[2])
    return cache_folder("remote") / f"{hash_of([place])}-{name[:60]}"


def _in_full(pattern: str, system: Any, place: str) -> str:
    """The URL of a place that a pattern matches: in the pattern's own spelling, unless it has several
    folders, whose files may have the same names."""
    folder = pattern.rpartition("/")[0]
    if any(sign in folder for sign in "*?["):
        return system.unstrip_protocol(place)
    return f"{folder}/{place.rpartition('/')[2]}"


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the place in it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{printable(url)} needs a further package ({error})") from None
    except Exception as error:  # an unknown protocol, wrong settings
        raise UserError(f"{printable(url)} cannot be opened ({brief(error)}); check data.path") from None


def _asked(url: str, ask: Any) -> Any:
    """The answer of a file system, whose many errors become one."""
    try:
        return ask()
    except Exception as error:
        if _is_missing(error):
            raise UserError(f"{printable(url)} does not exist; check data.path") from None
        raise UserError(f"{printable(url)} cannot be read ({brief(error)}); check the network") from None


def _is_missing(error: Exception) -> bool:
    """True where the place was asked and has no such file: fsspec takes a server that does not answer for a
    missing file, too."""
    cause = error.__cause__
    asked = cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) == 404
    return isinstance(error, FileNotFoundError) and asked


def _exists(system: Any, place: str, url: str) -> bool:
    return bool(_asked(url, lambda: system.exists(place)))


def _fetch(system: Any, place: str, folder: Path) -> Path:
    """The local copy of a file. Raises UserError where it cannot be had whole."""
    url = system.unstrip_protocol(place)
    shown = printable(url)
    file = folder / place.partition("?")[0].rpartition("/")[2]
    record = file.with_name(f".{file.name}.json")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):  # one process fetches, those beside it wait
        try:
            told = _asked(url, lambda: system.info(place))
        except UserError as error:
            if not (file.is_file() and record.is_file()) or "does not exist" in str(error):
                raise
            tell(f"{error}: its copy of an earlier run is used", stream=sys.stderr)
            return file
        size = told.get("size")
        known = {"size": size, **{name: str(told[name]) for name in _VERSION if told.get(name)}}
        if _is_current(file, record, known):
            return file
        if size and shutil.disk_usage(folder).free < size + _KEEP_FREE:
            raise UserError(
                f"{shown} has {size:,} bytes, and {folder} has no room for them; set XDG_CACHE_HOME to a "
                "folder with room"
            )
        tell(f"fetching {shown}" + (f", {size / 2**20:,.1f} MiB" if size else ""), stream=sys.stderr)
        write_whole(file, lambda stream: _copy(system, place, stream, size))
        write_whole(record, json.dumps(known))
    return file


def _is_current(file: Path, record: Path, known: dict[str, Any]) -> bool:
    """True for a whole copy of the version that the place has now."""
    if not file.is_file() or not record.is_file():
        return False
    try:
        kept = json.loads(record.read_bytes())
    except ValueError:
        return False
    return kept == known and known["size"] in (None, file.stat().st_size)


def _copy(system: Any, place: str, target: BinaryIO, size: int | None) -> None:
    """Copy a file piece by piece. Raises UserError if it breaks off, or has another size than was told."""
    copied, url = 0, system.unstrip_protocol(place)
    source = _asked(url, lambda: system.open(place, "rb"))
    with source:
        while piece := _asked(url, lambda: source.read(_PIECE)):
            copied += len(piece)
            target.write(piece)
    if size is not None and copied != size:
        raise UserError(f"{printable(url)} gave {copied:,} of {size:,} bytes; run the same command again")
