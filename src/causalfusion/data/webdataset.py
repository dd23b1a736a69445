"""WebDataset tar shards: KEY.jpg (or .png, ...) with KEY.cls and, if there, KEY.txt, read in place.

A plain .tar is indexed once (names, offsets, sizes) and read at random by position. A compressed one cannot
be: it is unpacked once into the user's cache folder.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from causalfusion.data.source import Example, UnreadableImage, decode_image, hash_of
from causalfusion.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass
class _Sample:
    """Where the members of one key lie: (shard, offset, size)."""

    name: str
    image: tuple[int, int, int] | None = None
    label: int | None = None
    caption: tuple[int, int, int] | None = None


class WebDataset:
    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self._paths = find_shards(pattern)
        self._plain = [_as_plain_tar(path) for path in self._paths]
        self._samples: list[_Sample] = []
        for shard, path in enumerate(self._plain):
            self._samples += _index(path, shard, self._paths[shard])
        if not self._samples:
            raise UserError(f"no images in the shards {pattern}; expected members such as 000000.jpg, 000000.cls")
        labelled = [sample.label for sample in self._samples if sample.label is not None]
        if 0 < len(labelled) < len(self._samples):
            missing = next(s.name for s in self._samples if s.label is None)
            raise UserError(f"shards {pattern}: {missing} has no .cls while others do; expected one for each or none")
        self.class_names = self._class_names(max(labelled) + 1 if labelled else 0)
        self._handles: dict[tuple[int, int], int] = {}

    def _class_names(self, num_classes: int) -> list[str]:
        listing = self._paths[0].parent / "classes.txt"
        if num_classes and listing.is_file():
            names = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
            if len(names) >= num_classes:
                return names
        return [str(i) for i in range(num_classes)]

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> Example:
        sample = self._samples[index]
        assert sample.image is not None
        caption = self._bytes(sample.caption).decode("utf-8").strip() if sample.caption else None
        return Example(decode_image(self._bytes(sample.image), sample.name), sample.label, caption)

    def _bytes(self, place: tuple[int, int, int]) -> bytes:
        shard, offset, size = place
        key = (os.getpid(), shard)  # a forked worker opens its own
        if key not in self._handles:
            self._handles[key] = os.open(self._plain[shard], os.O_RDONLY)
        content = os.pread(self._handles[key], size, offset)
        if len(content) < size:
            raise UnreadableImage(str(self._paths[shard]), "the shard is cut short")
        return content

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": {}}

    def fingerprint(self) -> str:
        return hash_of(part for path in self._paths for part in (path.name, path.stat().st_size))


def find_shards(pattern: str) -> list[Path]:
    """The shards that a folder, a glob, or a range such as train-{000000..000009}.tar means, in order."""
    if Path(pattern).is_dir():
        found = [p for p in Path(pattern).iterdir() if p.name.endswith((".tar", ".tar.gz", ".tgz"))]
    elif match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = match.groups()
        names = [
            pattern[: match.start()] + str(n).zfill(len(first)) + pattern[match.end() :]
            for n in range(int(first), int(last) + 1)
        ]
        found = [Path(name) for name in names]
        for path in found:
            if not path.is_file():
                raise UserError(f"shard {path} does not exist; data.path is {pattern}")
    else:
        found = [Path(name) for name in glob.glob(pattern)]
    if not found:
        raise UserError(f"no shards match data.path {pattern}; expected .tar or .tar.gz files")
    return sorted(found)


def _index(path: Path, shard: int, shown: Path) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, base = os.path.split(member.name)
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                sample = samples.setdefault(key, _Sample(f"{shown.name}:{member.name}"))
                place = (shard, member.offset_data, member.size)
                suffix = suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    sample.image, sample.name = place, f"{shown.name}:{member.name}"
                elif suffix == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    sample.label = int(content.read())
                elif suffix == "txt":
                    sample.caption = place
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {shown} cannot be read ({error}); it is damaged or cut short") from error
    except ValueError as error:
        raise UserError(f"shard {shown}: a .cls member is not a whole number ({error})") from error
    return [sample for sample in samples.values() if sample.image is not None]


def _as_plain_tar(path: Path) -> Path:
    """The shard itself, or its decompressed copy in the cache, made whole or not at all."""
    if path.suffix == ".tar":
        return path
    status = path.stat()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "causalfusion" / "shards"
    key = hash_of([path.resolve(), status.st_size, status.st_mtime_ns])
    plain = root / f"{key}-{path.name.removesuffix('.gz').removesuffix('.tgz')}"
    if plain.is_file():
        return plain
    root.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=root)
    try:
        with gzip.open(path, "rb") as packed, os.fdopen(handle, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
        os.replace(temporary, plain)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"shard {path} cannot be unpacked ({error}); it is damaged or cut short") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return plain
