"""File names: which are images, which are left out, and when two of them are the same."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Mapping

from causalfusion.errors import printable

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "tif", "tiff", "gif")
"""Of a key of a shard with several images, the first of these is used unless `data.image_suffix` says
otherwise."""
SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
"""Endings of image files, in any case."""
_MACHINE_MADE = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "__pycache__"} | {
    "thumbs.db",
    "desktop.ini",
    "ehthumbs.db",
}
"""Folders and files that systems, file servers and viewers put beside pictures, in lower case."""


def is_image(name: str) -> bool:
    """Whether the ending is an image's; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own: .ipynb_checkpoints, @eaDir, ._photo.jpg."""
    return name.startswith(".") or name.lower() in _MACHINE_MADE


def stem(file: str) -> str:
    """The path without its last ending."""
    return os.path.splitext(file)[0]


def same_name(name: str) -> str:
    """The composed form (NFC) of a name: "é" as one letter or as "e" with an accent are the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def say_left_out(where: str, counts: Mapping[str, int]) -> None:
    """One warning of all that a source does not use: {"hidden file": 3} as "3 x hidden file"."""
    kinds = [f"{number:,} x {printable(kind)}" for kind, number in counts.items() if number]
    if kinds:
        shown = ", ".join(kinds[:8]) + (f", and {len(kinds) - 8} kinds more" if len(kinds) > 8 else "")
        warnings.warn(f"{printable(where)}: left out: {shown}", stacklevel=3)


class Listing:
    """Which files there are: each folder is listed once, as a look at every single file takes far longer."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, file: str) -> str | None:
        """The file's path as it is on the disk, where accents may be written in another form; None where
        there is no such file."""
        folder, name = os.path.split(file)
        names = self._names(folder)
        if name in names:
            return file if names[name] == name else os.path.join(folder, names[name])
        if os.path.isfile(file):  # a file system that ignores case, or a folder that cannot be listed
            return file
        if not name.isascii() and same_name(name) in names:
            return os.path.join(folder, names[same_name(name)])
        if folder in ("", "/") or folder.isascii():
            return None
        actual = _as_on_disk(folder)
        return None if actual in (None, folder) else self.find(os.path.join(actual, name))

    def _names(self, folder: str) -> dict[str, str]:
        if folder not in self._folders:
            names: dict[str, str] = {}
            try:
                found = [entry.name for entry in os.scandir(folder or ".") if entry.is_file()]
            except (OSError, ValueError):
                found = []
            for name in found:
                names.setdefault(same_name(name), name)
            names |= {name: name for name in found}
            self._folders[folder] = names
        return self._folders[folder]


def find_path(path: str) -> str:
    """A file or folder as it is on the disk, where accents may be written in another form (NFD for NFC); the
    path itself where there is none."""
    return _as_on_disk(path) or path


def _as_on_disk(path: str) -> str | None:
    if path in ("", "/") or os.path.lexists(path):
        return path
    if path.isascii():
        return None
    parent, name = os.path.split(path.rstrip("/"))
    actual = _as_on_disk(parent)
    try:
        names = os.listdir(actual or ".") if actual is not None else []
    except OSError:
        return None
    found = next((each for each in names if same_name(each) == same_name(name)), None)
    return None if found is None or actual is None else os.path.join(actual, found)
