"""Images in a folder, with or without class folders, and caption files beside them if there are any."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from causalfusion.config import DataConfig
from causalfusion.data.captions import captions_of_text
from causalfusion.data.names import SUFFIXES, is_hidden, is_image, same_name, say_left_out, stem
from causalfusion.data.parquet import SPLITS
from causalfusion.data.picture import UnreadableImage, decode_image, read_file, size_of
from causalfusion.data.source import Example, digest
from causalfusion.data.written import pictures_beside
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, stamp

_LISTS = (".csv", ".tsv", ".json", ".jsonl")
"""Endings of files in which others keep captions."""
_INSTEAD = "captions are read from .txt files beside the images, or from a .jsonl list given itself"


def require_elsewhere(out: str | Path, data: DataConfig) -> None:
    """Raises UserError for a folder to write to that lies in the data's folder, where it would be read as a
    class, and pictures in it as images."""
    if data.source != "folder" or not data.path:
        return
    root, place = Path(data.path).resolve(), Path(out).resolve()
    if place.is_relative_to(root) and not any(map(is_hidden, place.relative_to(root).parts)):
        elsewhere = os.path.relpath(root.parent / "runs" / root.name)
        raise UserError(
            f"--out {printable(out)} lies in the data, {printable(data.path)}; give a folder elsewhere, such "
            f"as --out {printable(elsewhere)}"
        )


class ImageFolder:
    """The classes are the subfolders in alphabetical order, without hidden ones; images may lie at any depth
    in them, and links are followed. A folder without subfolders has no labels. One warning counts the files
    that are not used.

    A caption file is a `.txt` beside an image, with the same stem and a caption on each line. Either images
    and caption files match one to one, or no image has a caption file: then every `.txt` is ignored.
    """

    def __init__(self, path: str) -> None:
        root = Path(path)
        if not root.is_dir():
            raise UserError(
                f"data.path {printable(path)} is not a folder; expected a folder of class folders of images"
            )
        self.name, self._root = str(root), root
        found = _Walk(root)
        classes = sorted(entry.name for entry in found.list_folder(".") if entry.is_dir())
        if len(classes) > 1 and {folder.lower() for folder in classes} <= set(SPLITS):
            one = next((folder for folder in classes if folder.lower() == "train"), classes[0])
            raise UserError(
                f"{printable(path)} holds the splits {printable(', '.join(classes))}; give one: "
                f"{printable(root / one)}"
            )
        self._files: list[tuple[str, int | None]] = []
        for label, folder in enumerate(classes):
            files = found.images_below(folder)
            if not files:
                raise UserError(
                    f"the class folder {printable(root / folder)} has no images in it; fill it or remove it"
                )
            self._files += [(file, label) for file in files]
        if not classes:
            self._files = [(file, None) for file in found.images_below(".")]
        else:
            for entry in found.list_folder("."):
                if entry.is_file() and is_image(entry.name):
                    found.left_out["image beside the class folders"] += 1
                elif entry.is_file():
                    found.leave_out(entry.name)
        if not self._files:
            raise UserError(f"no images in {printable(path)}; expected files ending in {', '.join(SUFFIXES)}")
        self.class_names = [same_name(folder) for folder in classes]
        for name, count in Counter(self.class_names).items():
            if count > 1:  # such as "é" in composed and in decomposed form
                raise UserError(f"{printable(path)} has {count} class folders of one name, {printable(name)}")
        self._odd_texts: dict[str, str] = {}
        """Caption files whose name has another Unicode form than their image's, by the image's stem."""
        self.has_captions = self._match(found.texts)
        if not self.has_captions:
            found.left_out[".txt"] += len(found.texts)
            for ending in found.left_out.keys() & set(_LISTS):
                found.left_out[f"{ending} ({_INSTEAD})"] = found.left_out.pop(ending)
        say_left_out(path, found.left_out)

    def _match(self, texts: dict[str, str]) -> bool:
        """True if the images have captions. `texts` are all `.txt` files, by their stem in composed form.
        Raises UserError if only some of them match the images."""
        stems = [stem(file) for file, _ in self._files]
        missing = [place for place, name in enumerate(stems) if same_name(name) not in texts]
        if len(missing) == len(stems):
            return False
        if missing:
            file = self._files[missing[0]][0]
            raise UserError(
                f"{printable(self._root / file)} has no caption file {printable(Path(stem(file)).name)}.txt "
                f"beside it while others do ({len(missing)} of {len(stems)} images have none); expected one "
                "for each image or for none"
            )
        orphans = set(texts).difference(map(same_name, stems))
        if orphans:
            raise UserError(
                f"the caption file {printable(self._root / texts[min(orphans)])} has no image of the same "
                f"name beside it (as {len(orphans)} of {len(texts)}); remove it, or put the image there"
            )
        self._odd_texts = {
            name: texts[same_name(name)] for name in stems if texts[same_name(name)] != name + ".txt"
        }
        return True

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Example:
        file, label = self._files[index]
        return Example(decode_image(self._content(file), file), label, self.captions(index))

    def label(self, index: int) -> int | None:
        return self._files[index][1]

    def captions(self, index: int) -> tuple[str, ...]:
        if not self.has_captions:
            return ()
        text = self._text_of(self._files[index][0])
        return captions_of_text(self._content(text), text)

    def _text_of(self, file: str) -> str:
        return self._odd_texts.get(stem(file), stem(file) + ".txt")

    def _content(self, file: str) -> bytes:
        try:
            return read_file(self._root / file)
        except OSError as error:
            raise UnreadableImage(file, error) from error

    def image_size(self, index: int) -> tuple[int, int]:
        file = self._files[index][0]
        return size_of(self._content(file), file)

    def image_name(self, index: int) -> str:
        return printable(self._files[index][0])

    def content_hash(self, index: int) -> bytes:
        file, label = self._files[index]
        texts = [self._content(self._text_of(file))] if self.has_captions else []
        return digest(-1 if label is None else self.class_names[label], self._content(file), *texts)

    def _all_files(self) -> list[str]:
        files = [file for file, _ in self._files]
        return files + [self._text_of(file) for file in files] if self.has_captions else files

    def fingerprint(self) -> str:
        return hash_of(part for file in self._all_files() for part in (file, *stamp(self._root / file)))

    def sizes_fingerprint(self) -> str:
        return hash_of(part for file in self._all_files() for part in (file, stamp(self._root / file)[0]))


class _Walk:
    """The contents of a folder: images, `.txt` files, and counts of what is not used. All paths are relative
    to the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts: dict[str, str] = {}
        """`.txt` files by their stem in composed form."""
        self.left_out: Counter[str] = Counter()
        self._listed: dict[str, list[os.DirEntry[str]]] = {}

    def images_below(self, folder: str) -> list[str]:
        """The images at any depth below a folder, sorted. Links are followed; each folder is read once."""
        found: list[str] = []
        waiting, seen = [folder], set()
        while waiting:
            current = waiting.pop()
            status = os.stat(self.root / current)
            if (status.st_dev, status.st_ino) in seen:
                self.left_out["link to a folder that is read already"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            beside = pictures_beside(self.root / current)
            for entry in self.list_folder(current):
                name = os.path.normpath(os.path.join(current, entry.name))
                if entry.is_dir():
                    waiting.append(name)
                elif not entry.is_file():
                    self.left_out["broken link, pipe or device"] += 1
                elif entry.name in beside:
                    self.left_out[f"{entry.name} drawn by causalfusion"] += 1
                elif is_image(entry.name):
                    found.append(name)
                elif entry.name.lower().endswith(".txt"):
                    self.texts[same_name(stem(name))] = name
                else:
                    self.leave_out(entry.name)
        return sorted(found)

    def leave_out(self, name: str) -> None:
        """Count a file that is not used, by its ending."""
        self.left_out[os.path.splitext(name)[1].lower() or "file without an ending"] += 1

    def list_folder(self, folder: str) -> list[os.DirEntry[str]]:
        """The entries of a folder, without hidden and machine-made ones, which are counted."""
        if folder not in self._listed:
            try:
                entries = list(os.scandir(self.root / folder))
            except OSError as error:
                raise UserError(
                    f"{printable(self.root / folder)} cannot be listed ({error.strerror}); expected a "
                    "readable folder"
                ) from error
            for entry in entries:
                if is_hidden(entry.name):
                    kind = f"hidden folder ({entry.name})" if entry.is_dir() else "hidden file"
                    self.left_out[kind] += 1
            kept = [entry for entry in entries if not is_hidden(entry.name)]
            if folder != ".":
                return kept
            self._listed[folder] = kept
        return self._listed[folder]
