"""A folder of class folders of images."""

from __future__ import annotations

import os
from pathlib import Path

from causalfusion.data.source import Example, UnreadableImage, decode_image, hash_of
from causalfusion.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFolder:
    """Labels are the subfolders in alphabetical order; a folder without subfolders has no labels."""

    def __init__(self, path: str) -> None:
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"data.path {path} is not a folder; expected a folder of class folders of images")
        self.name = str(root)
        self._root = root
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self._files: list[tuple[str, int | None]] = []
        for label, class_name in enumerate(classes):
            self._files += [(file, label) for file in _images_below(root, class_name)]
        if not classes:
            self._files = [(file, None) for file in _images_below(root, ".")]
        if not self._files:
            raise UserError(f"no images in {path}; expected files ending in {', '.join(SUFFIXES)}")
        self.class_names = classes

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Example:
        file, label = self._files[index]
        try:
            content = (self._root / file).read_bytes()
        except OSError as error:
            raise UnreadableImage(file, error) from error
        return Example(decode_image(content, file), label)

    def fingerprint(self) -> str:
        sizes = ((file, (self._root / file).stat().st_size) for file, _ in self._files)
        return hash_of(part for pair in sizes for part in pair)


def _images_below(root: Path, folder: str) -> list[str]:
    found = []
    for base, _, files in os.walk(root / folder):
        inside = Path(base).relative_to(root)
        found += [str(inside / file) for file in files if file.lower().endswith(SUFFIXES)]
    return sorted(found)
