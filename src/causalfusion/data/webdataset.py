"""WebDataset tar shards: KEY.jpg (or .png, ...) with optional KEY.cls, KEY.txt and KEY.json.

Each shard is indexed once (names, offsets, sizes); then samples are read in place, in any order.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.data.captions import captions_of_record, captions_of_text
from causalfusion.data.labels import Classes, named_classes, numbered_classes, read_class_list
from causalfusion.data.members import Sample, group
from causalfusion.data.names import say_left_out
from causalfusion.data.picture import MAX_FILE, UnreadableImage, decode_image, size_of
from causalfusion.data.shards import as_plain_tar, find_shards
from causalfusion.data.source import Example, digest
from causalfusion.data.tar import DamagedTar, Member, list_members
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, named_stamps

__all__ = ["WebDataset", "find_shards"]

_NOWHERE = (0, -1)
"""Offset and size of a missing member."""
_LABEL_FIELDS = ("label", "cls", "class")
"""Fields of a .json that may hold the label if there is no .cls."""
_RECORDS_TRIED = 64
"""Records of a shard that are searched for a label before all are taken to have none."""

Label = int | str | None


class WebDataset:
    """Samples in the order of the shards and of the keys in them. Either each image has captions (in its .txt
    or .json), or none has. A label is a number in a .cls, or a number or name in the field `label`, `cls` or
    `class` of the .json; `classes.txt` beside the shards names the numbers. One warning counts the members
    that are not used."""

    def __init__(self, pattern: str, image_suffix: str = "") -> None:
        self.name, self._image_suffix = pattern, image_suffix.lower().lstrip(".")
        self._shards, self._from_json = find_shards(pattern), True
        self._plain = [as_plain_tar(path) for path in self._shards]
        # Arrays keep a million samples small, and forked workers share their memory.
        shards, names, labels, captioned = [], [], [], []
        places, texts, records = [], [], []
        left_out: Counter[str] = Counter()
        for number, plain in enumerate(self._plain):
            index = _Index(plain, self._shards[number], self._image_suffix, left_out)
            shards += [number] * len(index.samples)
            labels += index.labels
            self._from_json = self._from_json and index.from_json
            captioned += index.captioned
            for sample in index.samples:
                names.append(sample.image.name)
                places.append(sample.image[1:])
                texts.append(sample.text[1:] if sample.text else _NOWHERE)
                records.append(sample.record[1:] if sample.record else _NOWHERE)
        if not names:
            ending = (
                f".{self._image_suffix} (data.image_suffix)" if image_suffix else "000000.jpg, 000000.cls"
            )
            raise UserError(
                f"no images in the shards {printable(pattern)}; expected members such as {ending}"
            )
        self._shard_of, self._names = np.array(shards, np.int32), names
        self._places = np.array(places, np.int64)
        self.has_captions = self._all_have_captions(captioned)
        if self.has_captions:
            self._texts, self._records = np.array(texts, np.int64), np.array(records, np.int64)
        self.classes = self._classes(labels, left_out)
        self.class_names = self.classes.names if self.classes else []
        say_left_out(f"shards {pattern}", left_out)

    def _classes(self, labels: list[Label], left_out: Counter[str]) -> Classes | None:
        missing = labels.count(None)
        if missing == len(labels):
            return None
        if missing:
            if self._from_json:  # the field may be something else than a label
                left_out["label in a .json, as other images have none"] += len(labels) - missing
                return None
            name = self.image_name(labels.index(None))
            raise UserError(
                f"shards {printable(self.name)}: {name} has no .cls while others do ({missing} of "
                f"{len(labels)} have none); expected one for each or none"
            )
        words = [label for label in labels if isinstance(label, str)]
        if words:
            if len(words) < len(labels):
                number = next(n for n, label in enumerate(labels) if not isinstance(label, str))
                raise UserError(
                    f"shards {printable(self.name)}: the label of {self.image_name(number)} is a number, "
                    f"others are names, such as {printable(words[0])}; expected one kind"
                )
            return named_classes(words)
        listing = self._shards[0].parent / "classes.txt"
        try:
            names = read_class_list(listing.read_bytes(), str(listing)) if listing.is_file() else []
        except OSError as error:
            raise UserError(f"{listing} cannot be read ({error.strerror}); check the file") from error
        numbers = [label for label in labels if isinstance(label, int)]
        return numbered_classes(numbers, f"shards {printable(self.name)}", names, str(listing))

    def _all_have_captions(self, captioned: list[bool | None]) -> bool:
        missing, present = captioned.count(False), captioned.count(True)
        if missing and present:
            name = self.image_name(captioned.index(False))
            raise UserError(
                f"shards {printable(self.name)}: {name} has no caption (.txt, or `caption` in .json) while "
                f"others do ({missing} of {len(captioned)} images have none); expected captions for each or "
                "for none"
            )
        return present > 0

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Example:
        image = decode_image(self._content(index, self._places[index]), self.image_name(index))
        return Example(image, self.label(index), self.captions(index))

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self.classes.labels[index])

    def captions(self, index: int) -> tuple[str, ...]:
        name, captions = self.image_name(index), ()
        if not self.has_captions:
            return captions
        if self._records[index, 1] >= 0:
            try:
                captions = _captions_of_json(self._content(index, self._records[index]), name)
            except UserError as error:
                raise UnreadableImage(name, error) from None
        if captions or self._texts[index, 1] < 0:
            return captions
        return captions_of_text(self._content(index, self._texts[index]), f".txt of {name}")

    def _content(self, index: int, place: np.ndarray) -> bytes:
        offset, size = place.tolist()
        if size > MAX_FILE:
            raise UnreadableImage(
                self.image_name(index), f"it has {size:,} bytes; expected at most {MAX_FILE:,}"
            )
        try:
            # Opened each time (a few microseconds), so that workers share no handles, and none run out.
            with open(self._plain[self._shard_of[index]], "rb", buffering=0) as shard:
                content = os.pread(shard.fileno(), size, offset)
        except OSError as error:
            raise UnreadableImage(self.image_name(index), error) from error
        if len(content) < size:
            raise UnreadableImage(self.image_name(index), "the shard is cut short")
        return content

    def image_size(self, index: int) -> tuple[int, int]:
        return size_of(self._content(index, self._places[index]), self.image_name(index))

    def image_name(self, index: int) -> str:
        return printable(f"{self._shards[self._shard_of[index]].name}:{self._names[index]}")

    def content_hash(self, index: int) -> bytes:
        places = [self._places[index]]
        if self.has_captions:
            places += [place for place in (self._texts[index], self._records[index]) if place[1] >= 0]
        label = -1 if self.classes is None else self.class_names[self.classes.labels[index]]
        return digest(label, *(self._content(index, place) for place in places))

    def fingerprint(self) -> str:
        listing = self._shards[0].parent / "classes.txt"
        files = [*self._shards, *([listing] if listing.is_file() else [])]
        return hash_of([self._image_suffix, *named_stamps(files)])

    def sizes_fingerprint(self) -> str:
        return hash_of(part for path in self._shards for part in (path.name, path.stat().st_size))


class _Index:
    """The samples of a shard that have an image, with their labels, and flags for those that have captions
    (None: unknown, as the .json is damaged). `plain` is `shard`, decompressed. Raises UserError."""

    def __init__(self, plain: Path, shard: Path, image_suffix: str, left_out: Counter[str]) -> None:
        self._shard = shard
        try:
            self.samples = group(list_members(plain), image_suffix, left_out)
            with open(plain, "rb") as stream:
                handle = stream.fileno()
                self.labels = self._labels(handle)
                self.captioned = [self._has_captions(handle, sample) for sample in self.samples]
            left_out["damaged .json"] += self.captioned.count(None)
        except (DamagedTar, OSError) as error:
            raise UserError(
                f"shard {printable(shard)} cannot be read ({error}); it is damaged or cut short: copy it "
                "again"
            ) from error

    def _labels(self, handle: int) -> list[Label]:
        """Labels from the .cls members or, if no sample has one, from the .json members that have one."""
        self.from_json = not any(sample.label for sample in self.samples)
        if not self.from_json:
            return [self._number(handle, sample.label) for sample in self.samples]
        labels: list[Label] = []
        for sample in self.samples:
            if len(labels) >= _RECORDS_TRIED and not any(label is not None for label in labels):
                return [None] * len(self.samples)
            labels.append(_label_of_json(_content(handle, sample.record)) if sample.record else None)
        return labels

    def _number(self, handle: int, member: Member | None) -> int | None:
        if member is None:
            return None
        content = os.pread(handle, min(member.size, 64), member.offset)
        try:
            return int(content)
        except ValueError:
            shown = content[:20].decode("utf-8", "replace")
            raise UserError(
                f"shard {printable(self._shard)}: {printable(member.name)} holds {shown!r}; expected a whole "
                "number"
            ) from None

    def _has_captions(self, handle: int, sample: Sample) -> bool | None:
        if sample.text is not None and sample.text.size:
            return True  # a .json need not be read yet, even if it overrides these captions
        if sample.record is None:
            return False
        name = printable(f"{self._shard.name}:{sample.image.name}")
        content = _content(handle, sample.record)
        try:
            return bool(_captions_of_json(content, name))
        except _DamagedJson:
            return None


class _DamagedJson(UserError):
    pass


def _content(handle: int, member: Member) -> bytes:
    return os.pread(handle, min(member.size, MAX_FILE), member.offset)


def _captions_of_json(content: bytes, name: str) -> tuple[str, ...]:
    """The captions in a .json; () also for one that is not an object, such as a list of boxes."""
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _DamagedJson(f"the .json of {name} is not valid JSON ({error}); repair the shard") from error
    return captions_of_record(record, f"the .json of {name}") if isinstance(record, dict) else ()


def _label_of_json(content: bytes) -> Label:
    """The label in a record, a number or a name; None if it has neither."""
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    for field in _LABEL_FIELDS:
        value = record.get(field)
        if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value):
            return value
    return None
