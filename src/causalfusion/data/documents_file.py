"""Documents in JSONL files: each line is an object with the document's elements, texts and images.

{"elements": [{"text": "A red circle:"}, {"image": "photos/1.png"}, {"text": "And a blue one:"},
              {"image": "photos.tar/blue/2.png"}]}
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from causalfusion.data.document_line import EXAMPLE, Part, parse_document
from causalfusion.data.document_source import DocumentExample
from causalfusion.data.image_places import ImagePlaces
from causalfusion.data.lines import LineFile
from causalfusion.data.names import is_hidden
from causalfusion.data.picture import UnreadableImage, decode_image
from causalfusion.data.source import digest
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, stamp


class JsonlDocuments:
    """The documents of a .jsonl file, in the order of its lines, or of all .jsonl files in a folder, in the
    order of their names; blank lines are skipped.

    The path of an image is absolute, or relative to the folder of its .jsonl file; it may lead into a tar
    (`ImagePlaces`). Every line is checked when the files are opened, but only its offset is kept.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._names = _files_of(path)
        self._files = [_lines_of(file) for file in self._names]
        self._folders = [os.path.dirname(os.path.abspath(file)) for file in self._names]
        self._first = [0, *accumulate(map(len, self._files))]
        if not len(self):
            raise UserError(f"{printable(path)} has no lines; expected one such as {EXAMPLE}")
        self._places, self._counts = ImagePlaces(), list[int]()
        for index, (_, parts) in enumerate(self._all()):
            images = self._images(index, parts)
            for image in images:
                missing = self._places.missing(image)
                if missing:
                    raise UserError(f"{self.image_name(index)}: there is {missing}; correct `image`")
            self._counts.append(len(images))

    def __len__(self) -> int:
        return self._first[-1]

    def images_of(self, index: int) -> int:
        return self._counts[index]

    def texts(self, index: int) -> tuple[str, ...]:
        return tuple(part.value for part in self.parts(index) if part.kind == "text")

    def parts(self, index: int) -> tuple[Part, ...]:
        """The elements of a document as its line has them. Raises OSError where the file is gone."""
        number = self._number(index)
        return parse_document(self._files[number][index - self._first[number]], self.image_name(index))

    def read(self, index: int, epoch: int = 0) -> DocumentExample:
        """One document; all epochs have the same. Raises UnreadableImage."""
        parts, contents = self._open(index)
        name = self.image_name(index)
        images = iter(contents)
        return DocumentExample(
            tuple(
                part.value if part.kind == "text" else decode_image(next(images), f"{name}: {part.value}")
                for part in parts
            )
        )

    def path_of(self, index: int, part: Part) -> str:
        """The path of an image of a document."""
        return os.path.join(self._folders[self._number(index)], part.value)

    def image_name(self, index: int) -> str:
        """A document's name in messages: its file and line."""
        number = self._number(index)
        line = self._files[number].number(index - self._first[number])
        return f"{printable(self._names[number])} line {line}"

    def content_hash(self, index: int) -> bytes:
        parts, contents = self._open(index)
        texts = [part.value if part.kind == "text" else None for part in parts]
        return digest(json.dumps(texts), *contents)

    def fingerprint(self) -> str:
        """A hash of all lines, and of the sizes and modification times of the images' files."""
        return hash_of(self._facts(slice(None)))

    def sizes_fingerprint(self) -> str:
        return hash_of(self._facts(slice(1)))

    def _facts(self, of_stamp: slice) -> Iterator[object]:
        for index, (line, parts) in enumerate(self._all()):
            yield line
            for image in self._images(index, parts):
                yield from stamp(self._places.file_of(image))[of_stamp]

    def _all(self) -> Iterator[tuple[bytes, tuple[Part, ...]]]:
        """(line, elements) of all documents, in one pass over the files."""
        lines = (line for file in self._files for line in file)
        for index, line in enumerate(lines):
            yield line, parse_document(line, self.image_name(index))

    def _open(self, index: int) -> tuple[tuple[Part, ...], list[bytes]]:
        """(elements, contents of the images). Raises UnreadableImage."""
        try:
            parts = self.parts(index)
            return parts, [self._places.read(image) for image in self._images(index, parts)]
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error
            raise UnreadableImage(self.image_name(index), reason) from error

    def _images(self, index: int, parts: tuple[Part, ...]) -> list[str]:
        """The paths of a document's images."""
        return [self.path_of(index, part) for part in parts if part.kind == "image"]

    def _number(self, index: int) -> int:
        """The number of the file that has this document."""
        return bisect_right(self._first, index) - 1


def _files_of(path: str) -> list[str]:
    """The .jsonl files that a path names, sorted."""
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError(
            f"{printable(path)} is neither a file nor a folder; expected a .jsonl file of documents, or a "
            "folder of such files"
        )
    names = sorted(n for n in os.listdir(path) if n.lower().endswith(".jsonl") and not is_hidden(n))
    if not names:
        raise UserError(f"{printable(path)} has no .jsonl file; expected one, a document on each line")
    return [os.path.join(path, name) for name in names]


def _lines_of(file: str) -> LineFile:
    try:
        return LineFile(Path(file))
    except OSError as error:
        raise UserError(f"{printable(file)} cannot be read ({error.strerror}); check the file") from error
