"""A folder of class folders of images."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from causalfusion.data.source import Example, UnreadableImage, decode_image, hash_of
from causalfusion.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFolder:
    """Labels are the subfolders in alphabetical order, hidden ones left out; images may lie deeper in them. A
    folder without subfolders has no labels."""

    def __init__(self, path: str) -> None:
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"data.path {path} is not a folder; expected a folder of class folders of images")
        self.name = str(root)
        self._root = root
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
        classes = sorted(entry.name for entry in entries if entry.is_dir())
        loose = sum(entry.is_file() and _is_image(entry.name) for entry in entries)
        self._files: list[tuple[str, int | None]] = []
        for label, class_name in enumerate(classes):
            files = _images_below(root, class_name)
            if not files:
                raise UserError(
                    f"the class folder {root / class_name} has no images in it; fill it or remove it"
                )
            self._files += [(file, label) for file in files]
        if not classes:
            self._files = [(file, None) for file in _images_below(root, ".")]
        elif loose:
            warnings.warn(f"{loose} images beside the class folders of {path} are left out", stacklevel=2)
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
        return hash_of(part for file, _ in self._files for part in (file, _size(self._root / file)))


def _images_below(root: Path, folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}); expected a readable folder")

    found = []
    for base, _, files in os.walk(root / folder, onerror=refuse):
        inside = os.path.relpath(base, root)
        found += [os.path.normpath(os.path.join(inside, file)) for file in files if _is_image(file)]
    return sorted(found)


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1
