"""A folder of class folders of images, or of images alone; with captions, if they lie beside the images."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from causalfusion.data.captions import captions_of_text
from causalfusion.data.source import Example, UnreadableImage, decode_image
from causalfusion.data.written import pictures_beside
from causalfusion.errors import UserError
from causalfusion.files import hash_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFolder:
    """Labels are the subfolders in alphabetical order, hidden ones left out; images may lie deeper in them. A
    folder without subfolders has no labels.

    A caption file is a `.txt` beside an image, of the same stem, with a caption on each line. Either each
    image has one and each `.txt` in the folders that are read has an image, or no image has one: then any
    `.txt` is left alone.
    """

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
        stems: set[str] = set()
        for label, class_name in enumerate(classes):
            files = _images_below(root, class_name, stems)
            if not files:
                raise UserError(
                    f"the class folder {root / class_name} has no images in it; fill it or remove it"
                )
            self._files += [(file, label) for file in files]
        if not classes:
            self._files = [(file, None) for file in _images_below(root, ".", stems)]
        elif loose:
            warnings.warn(f"{loose} images beside the class folders of {path} are left out", stacklevel=2)
        if not self._files:
            raise UserError(f"no images in {path}; expected files ending in {', '.join(SUFFIXES)}")
        self.class_names = classes
        self.has_captions = self._match(stems)

    def _match(self, texts: set[str]) -> bool:
        """Whether there are captions, these being the stems of all `.txt` files. Raises UserError where they
        do not match the images."""
        missing = [file for file, _ in self._files if _stem(file) not in texts]
        if len(missing) == len(self._files):
            return False
        if missing:
            raise UserError(
                f"{self._root / missing[0]} has no caption file {Path(_stem(missing[0])).name}.txt beside it "
                f"while others do ({len(missing)} of {len(self._files)} images have none); expected one for "
                "each image or for none"
            )
        lonely = texts.difference(_stem(file) for file, _ in self._files)
        if lonely:
            raise UserError(
                f"the caption file {self._root / min(lonely)}.txt has no image of the same name beside it "
                f"(as {len(lonely)} of {len(texts)}); remove it, or put the image there"
            )
        return True

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Example:
        file, label = self._files[index]
        image = decode_image(self._content(file), file)
        if not self.has_captions:
            return Example(image, label)
        caption_file = _stem(file) + ".txt"
        return Example(image, label, captions_of_text(self._content(caption_file), caption_file))

    def _content(self, file: str) -> bytes:
        try:
            return (self._root / file).read_bytes()
        except OSError as error:
            raise UnreadableImage(file, error) from error

    def fingerprint(self) -> str:
        files = [file for file, _ in self._files]
        if self.has_captions:
            files += [_stem(file) + ".txt" for file in files]
        return hash_of(part for file in files for part in (file, _size(self._root / file)))


def _images_below(root: Path, folder: str, texts: set[str]) -> list[str]:
    """The images, sorted; the stems of the `.txt` files are added to `texts`. All relative to `root`."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}); expected a readable folder")

    found = []
    for base, _, files in os.walk(root / folder, onerror=refuse):
        inside = os.path.relpath(base, root)
        beside = pictures_beside(Path(base))
        for file in files:
            if _is_image(file) and file not in beside:
                found.append(os.path.normpath(os.path.join(inside, file)))
            elif file.endswith(".txt") and not file.startswith("."):
                texts.add(_stem(os.path.normpath(os.path.join(inside, file))))
    return sorted(found)


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1
