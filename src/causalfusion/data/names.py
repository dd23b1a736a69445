"""File names: image suffixes, hidden files, and Unicode forms of the same name."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Mapping

from causalfusion.errors import printable

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "tif", "tiff", "gif")
"""Suffixes of image files. For a shard's key with several images, the earliest in this list is used unless
`data.image_suffix` names another."""
SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
"""The same with their dot; case is ignored."""
_MACHINE_MADE = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "__pycache__"} | {
    "thumbs.db",
    "desktop.ini",
    "ehthumbs.db",
}
"""Folders and files that systems, file servers and viewers put beside images, in lower case."""


def is_image(name: str) -> bool:
    """True for a name that ends as an image's does and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """True for hidden and machine-made files and folders, such as .ipynb_checkpoints, @eaDir, ._photo.jpg."""
    return name.startswith(".") or name.lower() in _MACHINE_MADE


def stem(file: str) -> str:
    """The path without its suffix."""
    return os.path.splitext(file)[0]


def same_name(name: str) -> str:
    """The composed form (NFC) of a name, equal for "é" as one character and as "e" with an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def say_left_out(where: str, counts: Mapping[str, int]) -> None:
    """Warn once about all files that a source does not use: {"hidden file": 3} as "3 x hidden file"."""
    kinds = [f"{number:,} x {printable(kind)}" for kind, number in counts.items() if number]
    if kinds:
        shown = ", ".join(kinds[:8]) + (f", and {len(kinds) - 8} kinds more" if len(kinds) > 8 else "")
        warnings.warn(f"{printable(where)}: left out: {shown}", stacklevel=3)


class Listing:
    """Look-up of files by path. Each folder is listed once, far quicker than asking for every single file."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, file: str) -> str | None:
        """The file's path as spelled on disk, perhaps in another Unicode form; None if it does not exist."""
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
    """The path of a file or folder as spelled on disk, perhaps in another Unicode form (NFD for NFC); the
    path itself if nothing is there."""
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
    found = next((entry for entry in names if same_name(entry) == same_name(name)), None)
    return None if found is None or actual is None else os.path.join(actual, found)
