"""Recognising the kind of data set at a path."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from causalfusion.config import SourceName
from causalfusion.data.hugging_face import saved_to_disk
from causalfusion.data.latent_files import is_foreign
from causalfusion.data.names import find_path, is_hidden, is_image
from causalfusion.data.parquet import holds_parquet
from causalfusion.data.remote import is_url
from causalfusion.data.shards import PACKED, UNSUPPORTED, expand_braces, joined
from causalfusion.errors import UserError, printable

EXPECTED = (
    "expected a folder of images or of class folders, shards (*.tar, *.tar.gz), a .jsonl list (lines such as "
    '{"image": "1.jpg", "caption": "a dog"}), an .npz file, parquet files, or latents: a folder written by '
    "causalfusion encode, by MAR (.npz) or by LightningDiT (.safetensors)"
)
SHARD_SUFFIXES = (".tar", *PACKED, *UNSUPPORTED)
"""Endings of archives that may hold images; `find_shards` refuses those that cannot be read."""
_MAX_ENTRIES = 20_000
"""Entries to search before a folder is taken to hold no image."""


def guess_source(path: str | Sequence[str]) -> SourceName | Literal["cache"]:
    """The kind of data at a path, or at several (a shell's expansion of shards/*.tar); cheap. `cache` is a
    folder of latents, written by `causalfusion encode` or by others. Raises UserError for anything else."""
    if not isinstance(path, str):
        if len(path) > 1:
            combine_paths(path)
            return "webdataset"
        path = path[0] if path else ""
    shown = printable(path)
    if is_url(path):
        return _at_url(path, shown)
    place = Path(find_path(os.path.expanduser(path)))
    if place.is_dir():
        return _in_folder(place, shown)
    lowered = path.lower()
    is_file = place.is_file()
    if lowered.endswith(SHARD_SUFFIXES) and (is_file or any(sign in path for sign in "*?[{")):
        return "webdataset"
    if lowered.endswith(".jsonl") and is_file:
        return "documents" if _has_documents(place) else "jsonl"
    if lowered.endswith(".npz") and is_file:
        return "npz"
    if lowered.endswith(".parquet") and (is_file or glob.glob(str(place))):
        return "parquet"
    if not place.exists():
        what = "matches no file" if any(sign in path for sign in "*?[{") else "does not exist"
        raise UserError(f"{shown} {what}; {EXPECTED}")
    if is_image(place.name):
        raise UserError(f"{shown} is one image; {EXPECTED}")
    raise UserError(f"{shown} is not a kind of data that can be read; {EXPECTED}")


def is_there(path: str) -> bool:
    """True if a file or folder lies at a `data.path`, or matches its pattern. Not for URLs."""
    place = find_path(os.path.expanduser(path))
    return os.path.exists(place) or any(glob.glob(name) for name in expand_braces(place))


def _at_url(url: str, shown: str) -> SourceName:
    """The kind of files at a URL, by their ending."""
    ending = url.lower().partition("?")[0]
    kinds: tuple[tuple[SourceName, tuple[str, ...]], ...]
    kinds = (("webdataset", SHARD_SUFFIXES), ("npz", (".npz",)), ("parquet", (".parquet",)))
    for kind, suffixes in kinds:
        if ending.endswith(suffixes):
            return kind
    raise UserError(
        f"{shown} is not a kind of data that can be read from a URL; expected .tar, .npz or .parquet"
    )


def _has_documents(file: Path) -> bool:
    """True if the first line of a .jsonl file is one of documents."""
    try:
        with file.open("rb") as stream:
            first = json.loads(next((line for line in stream if not line.isspace()), b""))
    except (OSError, ValueError, RecursionError):  # opening it as what it is not says what is wrong
        return False
    return isinstance(first, dict) and "elements" in first


def combine_paths(paths: str | Sequence[str]) -> str:
    """A `data.path` pattern that matches several shards; a single path is returned as it is. Raises UserError
    for several paths that are not all shards."""
    if isinstance(paths, str):
        return paths
    if len(paths) == 1:
        return paths[0]
    for path in paths:
        if not path.lower().endswith(SHARD_SUFFIXES):
            raise UserError(
                f"{len(paths)} paths are given, and {printable(path)} is no shard; expected one path, or "
                "shards (*.tar, *.tar.gz)"
            )
        if any(sign in path for sign in ",{}"):
            raise UserError(
                f"{printable(path)}, one of {len(paths)} paths, has a comma or a brace in its name; give the "
                "folder of the shards, or rename it"
            )
    return joined(paths)


def _in_folder(folder: Path, shown: str) -> SourceName | Literal["cache"]:
    if (folder / "manifest.json").is_file() and (folder / "labels.npy").is_file():
        return "cache"
    try:
        names = [entry.name for entry in os.scandir(folder) if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{shown} cannot be listed ({error.strerror}); expected a readable folder") from error
    shards = [name for name in names if name.lower().endswith(SHARD_SUFFIXES)]
    image = next(_images(folder), None)
    if shards and image is not None:
        raise UserError(
            f"{shown} holds {len(shards)} shards ({printable(min(shards))}) and images "
            f"({printable(os.path.relpath(image, folder))}); expected one kind: give --data.source folder or "
            "--data.source webdataset"
        )
    if shards:
        return "webdataset"
    if image is not None:
        return "folder"
    if is_foreign(folder):
        return "cache"
    if saved_to_disk(folder):
        return "datasets"
    if holds_parquet(folder):
        return "parquet"
    lists = sorted(name for name in names if name.lower().endswith((".jsonl", ".npz")))
    if lists:
        raise UserError(
            f"{shown} holds no images but {printable(lists[0])}; give {shown}/{printable(lists[0])}"
        )
    if any(name[:1].isdigit() and name.endswith(".json") for name in names):
        raise UserError(f"{shown} is not finished: run the same causalfusion encode again to finish it")
    kinds = Counter(
        os.path.splitext(file.name)[1].lower() or "file without an ending" for file in _files(folder)
    )
    found = ", ".join(f"{number:,} x {printable(kind)}" for kind, number in kinds.most_common(3))
    raise UserError(f"{shown} holds no images{found and f' but {found}'}; {EXPECTED}")


def _images(folder: Path) -> Iterator[str]:
    """Images in a folder and below it."""
    return (entry.path for entry in _files(folder) if is_image(entry.name))


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files in a folder and below it that are not hidden, breadth first, among its first `_MAX_ENTRIES`
    entries."""
    searched, waiting, seen = 0, [str(folder)], set()
    while waiting and searched < _MAX_ENTRIES:
        current = waiting.pop(0)
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(current))
        except OSError:
            continue
        searched += len(entries)
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_file():
                yield entry
            elif entry.is_dir():
                waiting.append(entry.path)
