"""WebDataset tar shards: KEY.jpg (or .png, ...) with KEY.cls and, if there, KEY.txt, read in place.

A plain .tar is indexed once (names, offsets, sizes) and read at random by position. A compressed one cannot
be: it is unpacked once into the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache).
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from causalfusion.data.source import Example, UnreadableImage, decode_image, hash_of, numbered_classes
from causalfusion.data.tar import DamagedTar, Member, list_members
from causalfusion.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_PACKED = (".tar.gz", ".tgz")


@dataclass
class _Sample:
    """The members of one key."""

    image: Member | None = None
    label: Member | None = None
    caption: Member | None = None


class WebDataset:
    """Samples in the order of the shards and of the keys in them; a key without an image is left out."""

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self._shards = find_shards(pattern)
        self._plain = [_as_plain_tar(path) for path in self._shards]
        # Arrays, not objects: a million samples stay small, and forked workers share them.
        shards, names, labels, places, captions = [], [], [], [], []
        for number, plain in enumerate(self._plain):
            samples, found = _index(plain, self._shards[number])
            shards += [number] * len(samples)
            labels += found
            for sample in samples:
                assert sample.image is not None
                names.append(sample.image.name)
                places.append(sample.image[1:])
                captions.append(sample.caption[1:] if sample.caption else (0, -1))
        if not names:
            raise UserError(
                f"no images in the shards {pattern}; expected members such as 000000.jpg, 000000.cls"
            )
        self._shard_of, self._names = np.array(shards, np.int32), names
        self._places, self._captions = np.array(places, np.int64), np.array(captions, np.int64)
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
        has_caption = self._captions[index, 1] >= 0
        caption = (
            self._content(index, self._captions[index]).decode("utf-8", "replace") if has_caption else ""
        )
        label = None if self._labels is None else int(self._labels[index])
        return Example(image, label, caption.strip() if has_caption else None)

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
            matches = [Path(match) for match in glob.glob(name)]
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


def _index(plain: Path, shard: Path) -> tuple[list[_Sample], list[int | None]]:
    """The samples of a shard that have an image, and their labels. `plain` is `shard`, unpacked."""
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
                sample.caption = member
        complete = [sample for sample in samples.values() if sample.image is not None]
        with open(plain, "rb") as stream:
            labels = [_read_label(stream.fileno(), sample.label, shard) for sample in complete]
    except (DamagedTar, OSError) as error:
        raise UserError(
            f"shard {shard} cannot be read ({error}); it is damaged or cut short: copy it again"
        ) from error
    return complete, labels


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
