"""Images listed in a JSONL file: each line is an object with an image's path, captions and label.

{"image": "photos/1.jpg", "caption": "a red circle", "label": "circle"}
{"image": "photos/2.jpg", "captions": ["a blue star", "there is a star"], "label": "star"}
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.data.captions import captions_of_record
from causalfusion.data.labels import Classes, named_classes, numbered_classes
from causalfusion.data.lines import LineFile
from causalfusion.data.names import Listing, say_left_out
from causalfusion.data.picture import UnreadableImage, decode_image, read_file, size_of
from causalfusion.data.source import Example, digest
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, stamp

_KEYS = {"image", "caption", "captions", "label"}
_LIKE_CAPTIONS = ("text", "texts", "prompt")
"""Keys under which other lists have captions."""


class JsonlImages:
    """Images in the order of the lines; blank lines are skipped, and one warning counts the
    keys that are not used.

    `image` is a path, absolute or relative to the file's folder. `caption` (a string) or `captions` (a list
    of strings) is on every line or on none; so is `label`, a class number or a class name (names are numbered
    in alphabetical order). Every line is checked when the file is opened, but only its offset is kept.
    """

    def __init__(self, path: str) -> None:
        self.name, self._folder = path, os.path.dirname(os.path.abspath(path))
        if not os.path.isfile(path):
            raise UserError(f"data.path {path} is not a file; expected a .jsonl file, an object on each line")
        try:
            self._lines = LineFile(Path(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the file") from error
        if not len(self._lines):
            raise UserError(f'{path} has no lines; expected one such as {{"image": "1.jpg", "caption": "…"}}')
        labels: list[Any] = []
        unused: Counter[str] = Counter()
        captioned = np.empty(len(self._lines), bool)
        files = Listing()
        self._odd_files: dict[str, str] = {}
        """Files whose name on disk has another Unicode form (NFD for NFC), by the path in the line."""
        for index, line in enumerate(self._lines):
            record = self._parse(index, line)
            file = os.path.join(self._folder, record["image"])
            actual = files.find(file)
            if actual is None:
                raise UserError(
                    f"{self._where(index)}: there is no image file {printable(file)}; correct `image`"
                )
            if actual != file:
                self._odd_files[file] = actual
            captioned[index] = bool(captions_of_record(record, self._where(index)))
            labels.append(record.get("label"))
            unused.update(record.keys() - _KEYS)
        self.has_captions = self._all_or_none(captioned, "caption")
        self.classes = self._classes(labels)
        self.class_names = self.classes.names if self.classes else []
        hint = "" if self.has_captions else " (captions are read from `caption` or `captions`)"
        counts = {f"`{key}`{hint * (key in _LIKE_CAPTIONS)}": unused[key] for key in sorted(unused)}
        say_left_out(path, counts)

    def _parse(self, index: int, line: bytes) -> dict[str, Any]:
        """The object on this line. Raises UserError unless it has a string `image`."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # The decoder was given one line, so its line number is always 1: only the column is of use.
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg}, column {error.colno}"
            raise UserError(
                f"{self._where(index)} is not valid JSON ({reason}); expected an object on each line"
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"{self._where(index)} is a JSON {type(record).__name__}; expected an object such as "
                '{"image": "1.jpg", "caption": "…"}'
            )
        image = record.get("image")
        if not isinstance(image, str) or not image:
            keys = ", ".join(f"`{printable(key)}`" for key in list(record)[:8] if key not in _KEYS)
            lacks = f"has no `image`{keys and f' but {keys}'}"
            what = f"`image` is {json.dumps(image)}" if "image" in record else lacks
            raise UserError(f"{self._where(index)}: {what}; expected the path of an image file")
        return record

    def _where(self, index: int) -> str:
        return f"{printable(self.name)} line {self._lines.number(index)}"

    def _all_or_none(self, present: np.ndarray, what: str) -> bool:
        """True if every line has it, False if none has. Raises UserError if only some have."""
        missing = len(present) - int(present.sum())
        if 0 < missing < len(present):
            raise UserError(
                f"{self._where(int(np.argmin(present)))} has no {what} while others do "
                f"({missing} of {len(present)} have none); expected one on each line or on none"
            )
        return not missing

    def _classes(self, labels: list[Any]) -> Classes | None:
        if not self._all_or_none(np.array([label is not None for label in labels]), "label"):
            return None
        kind = str if isinstance(labels[0], str) else int
        expected = "a class name, as on the first" if kind is str else "a whole number, as on the first"
        for index, label in enumerate(labels):
            if type(label) is not kind or label == "":  # True is an int to isinstance
                wanted = expected if index else "a whole number or a class name"
                raise UserError(f"{self._where(index)}: `label` is {json.dumps(label)}; expected {wanted}")
        if kind is str:
            return named_classes(labels)
        return numbered_classes(labels, printable(self.name))

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> Example:
        record, image, content = self._open(index)
        captions = captions_of_record(record, self._where(index))
        return Example(decode_image(content, image), self.label(index), captions)

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self.classes.labels[index])

    def captions(self, index: int) -> tuple[str, ...]:
        try:
            record = self._parse(index, self._lines[index])
        except OSError as error:
            raise UnreadableImage(self.image_name(index), error) from error
        return captions_of_record(record, self._where(index))

    def _open(self, index: int) -> tuple[dict[str, Any], str, bytes]:
        """(record, name of the image, its content)."""
        image = self.image_name(index)
        try:
            record = self._parse(index, self._lines[index])
            image = record["image"]
            return record, image, read_file(self._path_of(record))
        except OSError as error:
            raise UnreadableImage(image, error) from error

    def image_size(self, index: int) -> tuple[int, int]:
        _, image, content = self._open(index)
        return size_of(content, image)

    def _path_of(self, record: dict[str, Any]) -> str:
        path = os.path.join(self._folder, record["image"])
        return self._odd_files.get(path, path)

    def image_name(self, index: int) -> str:
        return self._where(index)

    def content_hash(self, index: int) -> bytes:
        try:
            record = self._parse(index, self._lines[index])
            content = read_file(self._path_of(record))
        except OSError as error:
            raise UnreadableImage(self._where(index), error) from error
        facts = {name: value for name, value in record.items() if name in ("label", "caption", "captions")}
        return digest(json.dumps(facts, sort_keys=True), content)

    def fingerprint(self) -> str:
        """A hash of all lines, and of the sizes and modification times of the images."""
        return hash_of(
            part
            for index, line in enumerate(self._lines)
            for part in (line, *stamp(self._path_of(self._parse(index, line))))
        )

    def sizes_fingerprint(self) -> str:
        return hash_of(
            part
            for index, line in enumerate(self._lines)
            for part in (line, stamp(self._path_of(self._parse(index, line)))[0])
        )
