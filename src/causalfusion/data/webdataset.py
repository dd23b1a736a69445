"""WebDataset tar shards: KEY.jpg (or .png, ...) with KEY.cls, KEY.txt and KEY.json, if there, read in place.

A plain .tar is indexed once (names, offsets, sizes) and read at random by position. A compressed one cannot
be: it is unpacked once into the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache).
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from causalfusion.data.captions import captions_of_record, captions_of_text
from causalfusion.data.source import Example, UnreadableImage, decode_image, numbered_classes
from causalfusion.data.tar import DamagedTar, Member, list_members
from causalfusion.errors import UserError
from causalfusion.files import hash_of

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_PACKED = (".tar.gz", ".tgz")
_NOWHERE = (0, -1)
"""Offset and size of a member that is not there."""


@dataclass
class _Sample:
    """The members of one key."""

    image: Member | None = None
    label: Member | None = None
    text: Member | None = None
    """A caption on each line."""
    record: Member | None = None
    """JSON, maybe with captions: then they count, not those of `text`."""


class WebDataset:
    """Samples in the order of the shards and of the keys in them; a key without an image is left out. Each
    image has captions (in its .txt or .json), or none has."""

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self._shards = find_shards(pattern)
        self._plain = [_as_plain_tar(path) for path in self._shards]
        # Arrays, not objects: a million samples stay small, and forked workers share them.
        shards, names, labels, captioned = [], [], [], []
        places, texts, records = [], [], []
        for number, plain in enumerate(self._plain):
            samples, their_labels, have_captions = _index(plain, self._shards[number])
            shards += [number] * len(samples)
            labels += their_labels
            captioned += have_captions
            for sample in samples:
                assert sample.image is not None
                names.append(sample.image.name)
                places.append(sample.image[1:])
                texts.append(sample.text[1:] if sample.text else _NOWHERE)
                records.append(sample.record[1:] if sample.record else _NOWHERE)
        if not names:
            raise UserError(
                f"no images in the shards {pattern}; expected members such as 000000.jpg, 000000.cls"
            )
        self._shard_of, self._names = np.array(shards, np.int32), names
        self._places = np.array(places, np.int64)
        self.has_captions = self._all_have_captions(captioned)
        if self.has_captions:
            self._texts, self._records = np.array(texts, np.int64), np.array(records, np.int64)
        self._labels = self._all_labels(labels)
        self.class_names = [] if self._labels is None else self._named_classes(self._labels)

    def _all_labels(self, labels: list[int | None]) -> np.ndarray | None:
        missing = labels.count(None)
        if missing == len(labels):
            return None
        if missing:
            name = self._member_name(labels.index(None))
            raise UserError(
                f"shards {self.name}: {name} has no .cls while others do; expected one for each or none"
            )
        return np.array(labels, np.int64)

    def _all_have_captions(self, captioned: list[bool]) -> bool:
        missing = captioned.count(False)
        if 0 < missing < len(captioned):
            name = self._member_name(captioned.index(False))
            raise UserError(
                f"shards {self.name}: {name} has no caption (.txt, or `caption` in .json) while others do "
                f"({missing} of {len(captioned)} images have none); expected captions for each or for none"
            )
        return missing == 0

    def _named_classes(self, labels: np.ndarray) -> list[str]:
        """The lines of `classes.txt` beside the shards, or else the labels themselves."""
        numbers = numbered_classes(labels, f"shards {self.name}")
        listing = self._shards[0].parent / "classes.txt"
        if not listing.is_file():
            return numbers
        names = [line.strip() for line in listing.read_text("utf-8").splitlines() if line.strip()]
        if len(names) < len(numbers):
            raise UserError(
                f"{listing} names {len(names)} classes, the labels of {self.name} go to {len(numbers) - 1}; "
                "expected a line for each class: complete the file or remove it"
            )
        return names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Example:
        image = decode_image(self._content(index, self._places[index]), self._member_name(index))
        label = None if self._labels is None else int(self._labels[index])
        return Example(image, label, self._captions(index) if self.has_captions else ())

    def _captions(self, index: int) -> tuple[str, ...]:
        name, captions = self._member_name(index), ()
        if self._records[index, 1] >= 0:
            captions = _captions_of_json(self._content(index, self._records[index]), name)
        if captions or self._texts[index, 1] < 0:
            return captions
        return captions_of_text(self._content(index, self._texts[index]), f".txt of {name}")

    def _content(self, index: int, place: np.ndarray) -> bytes:
        offset, size = place.tolist()
        try:
            # Opened each time (some microseconds): no handles to share with workers, or to run out of.
            with open(self._plain[self._shard_of[index]], "rb", buffering=0) as shard:
                content = os.pread(shard.fileno(), size, offset)
        except OSError as error:
            raise UnreadableImage(self._member_name(index), error) from error
        if len(content) < size:
            raise UnreadableImage(self._member_name(index), "the shard is cut short")
        return content

    def _member_name(self, index: int) -> str:
        return f"{self._shards[self._shard_of[index]].name}:{self._names[index]}"

    def fingerprint(self) -> str:
        return hash_of(part for path in self._shards for part in (path.name, path.stat().st_size))


def find_shards(pattern: str) -> list[Path]:
    """The shards that a folder, a glob, or braces such as train-{000000..000009}.tar mean, sorted. Of a shard
    that lies there packed and unpacked, the unpacked one."""
    if Path(pattern).is_dir():
        found = [p for p in Path(pattern).iterdir() if p.name.endswith((".tar", *_PACKED))]
    elif Path(pattern).is_file():
        found = [Path(pattern)]
    else:
        found = []
        for name in _expand_braces(pattern):
            matches = [Path(name)] if Path(name).is_file() else [Path(match) for match in glob.glob(name)]
            if not matches and name != pattern:
                raise UserError(f"shard {name} does not exist; data.path is {pattern}")
            found += matches
    if not found:
        raise UserError(f"no shards match data.path {pattern}; expected .tar or .tar.gz files")
    unpacked = {path for path in found if path.suffix == ".tar"}
    return sorted(
        {path for path in found if path in unpacked or path.with_name(_stem(path) + ".tar") not in unpacked}
    )


def _expand_braces(pattern: str) -> list[str]:
    """a{0..2}b and a{x,y}b in full; numbers keep the width of the first."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    first, last, choices = match.groups()
    if choices is None:
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        parts = choices.split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [before + part + rest for part in parts for rest in _expand_braces(after)]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")


def _index(plain: Path, shard: Path) -> tuple[list[_Sample], list[int | None], list[bool]]:
    """The samples of a shard that have an image, their labels, and whether they have captions. `plain` is
    `shard`, unpacked."""
    samples: dict[str, _Sample] = {}
    try:
        for member in list_members(plain):
            folder, base = os.path.split(member.name)
            stem, _, suffix = base.partition(".")
            sample = samples.setdefault(f"{folder}/{stem}", _Sample())
            suffix = suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                sample.image = member
            elif suffix == "cls":
                sample.label = member
            elif suffix == "txt":
                sample.text = member
            elif suffix == "json":
                sample.record = member
        complete = [sample for sample in samples.values() if sample.image is not None]
        with open(plain, "rb") as stream:
            labels = [_read_label(stream.fileno(), sample.label, shard) for sample in complete]
            captioned = [_has_captions(stream.fileno(), sample, shard) for sample in complete]
    except (DamagedTar, OSError) as error:
        raise UserError(
            f"shard {shard} cannot be read ({error}); it is damaged or cut short: copy it again"
        ) from error
    return complete, labels, captioned


def _has_captions(handle: int, sample: _Sample, shard: Path) -> bool:
    if sample.text is not None and sample.text.size:
        return True  # without a look into a .json that may be there too: it is read in time
    if sample.record is None or sample.image is None:
        return False
    content = os.pread(handle, sample.record.size, sample.record.offset)
    return bool(_captions_of_json(content, f"{shard.name}:{sample.image.name}"))


def _captions_of_json(content: bytes, name: str) -> tuple[str, ...]:
    """() for one that is no object, too: such as a list of boxes."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the .json of {name} is not valid JSON ({error}); repair the shard") from error
    return captions_of_record(record, f"the .json of {name}") if isinstance(record, dict) else ()


def _read_label(handle: int, member: Member | None, shard: Path) -> int | None:
    if member is None:
        return None
    content = os.pread(handle, min(member.size, 64), member.offset)
    try:
        return int(content)
    except ValueError:
        shown = content[:20].decode("utf-8", "replace")
        raise UserError(f"shard {shard}: {member.name} holds {shown!r}; expected a whole number") from None


def _as_plain_tar(path: Path) -> Path:
    """The shard itself, or its decompressed copy in the cache, made whole or not at all."""
    if path.suffix == ".tar":
        return path
    status = path.stat()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "causalfusion" / "shards"
    plain = root / f"{hash_of([path.resolve(), status.st_size, status.st_mtime_ns])}-{_stem(path)}.tar"
    if plain.is_file():
        return plain
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=root, prefix="unfinished-")
    except OSError as error:
        raise UserError(_no_room(path, root, error)) from error
    try:
        with gzip.open(path, "rb") as packed, os.fdopen(handle, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
            unpacked.flush()
            os.fsync(unpacked.fileno())
        os.replace(temporary, plain)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"shard {path} cannot be unpacked ({error}); it is damaged or cut short: copy it again"
        ) from error
    except OSError as error:
        raise UserError(_no_room(path, root, error)) from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return plain


def _no_room(path: Path, root: Path, error: OSError) -> str:
    remedy = "set XDG_CACHE_HOME to a folder with room, or gunzip it"
    return f"shard {path} cannot be unpacked into {root} ({error}); {remedy}"
