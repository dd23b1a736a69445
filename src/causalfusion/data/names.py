"""File names: which are images, which are left out, and when two of them are the same."""

from __future__ import annotations

import os
import unicodedata

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Endings of image files, in any case."""
_MACHINE_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs", "__pycache__"}
"""What operating systems, file servers and viewers put beside the pictures, in lower case."""


def is_image(name: str) -> bool:
    """Whether the ending is an image's; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own: .ipynb_checkpoints, @eaDir, ._photo.jpg."""
    return name.startswith(".") or name.lower() in _MACHINE_FOLDERS


def stem(file: str) -> str:
    """The path without its last ending."""
    return os.path.splitext(file)[0]


def same_name(name: str) -> str:
    """The composed form (NFC) of a name: "é" as one letter or as "e" with an accent are the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
