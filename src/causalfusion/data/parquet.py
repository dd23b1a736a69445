"""Images in parquet files, as the Hugging Face hub stores data sets: a row for each image.

The column of images holds encoded pictures (PNG, JPEG, ...), as bytes or as {bytes, path}. Parquet packs rows
in groups, which take long to open for one image in random order: each file's pictures are unpacked once, side
by side, into the user's cache folder.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.data.columns import GUESSED, Columns, choose_columns
from causalfusion.data.shards import expand_braces
from causalfusion.data.table_images import TableImages
from causalfusion.data.unpacked import Unpacked, unpack
from causalfusion.errors import UserError, brief, printable
from causalfusion.files import cache_folder, hash_of, named_stamps, stamp

SPLITS = ("train", "validation", "valid", "val", "test")
_ROWS = 256
"""Rows that are unpacked together."""


def find_parquet(pattern: str) -> list[Path]:
    """The parquet files that a file, a glob or a folder (with a folder data in it) means, sorted. Raises
    UserError."""
    place = Path(pattern)
    if place.is_dir():
        found = sorted(place.glob("*.parquet")) or sorted(place.glob("data/*.parquet"))
        splits = sorted({split for path in found for split in SPLITS if path.name.startswith(f"{split}-")})
        if len(splits) > 1:
            raise UserError(
                f"{printable(pattern)} holds the splits {', '.join(splits)}; give one: "
                f"'{printable(found[0].parent)}/{'train' if 'train' in splits else splits[0]}-*.parquet'"
            )
    else:
        names = [name for one in expand_braces(pattern) for name in sorted(glob.glob(one))]
        found = [place] if place.is_file() else [Path(name) for name in names]
    if not found:
        raise UserError(f"no files match data.path {printable(pattern)}; expected .parquet files")
    return found


class ParquetImages(TableImages):
    """Images in the order of the files and rows; classes have the names in the data set's own features."""

    def __init__(self, pattern: str, columns: Columns = GUESSED) -> None:
        self.name, self._given = pattern, columns
        self._files = find_parquet(pattern)
        opened = [_open(path) for path in self._files]
        chosen = _chosen(opened[0], columns, self._files[0])
        for path, file in zip(self._files, opened, strict=True):
            missing = set(chosen.named) - set(file.schema_arrow.names)
            if missing:
                raise UserError(f"{printable(path)} has no column {min(missing)}, as {self._files[0]} has")
        self._blobs = [_unpack(path, f, chosen.image) for path, f in zip(self._files, opened, strict=True)]
        self._starts = np.cumsum([0, *map(len, self._blobs)])
        if not len(self):
            raise UserError(f"{printable(pattern)} has no rows; expected images")
        labels, captions = _values(opened, chosen.label), _values(opened, chosen.caption)
        names = list(opened[0].schema_arrow.names)
        self._take(chosen, names, labels, _class_names(opened[0], chosen.label), captions)

    def __reduce__(self) -> tuple[type[ParquetImages], tuple[str, Columns]]:
        """Pickle as the path: another process opens the files."""
        return ParquetImages, (self.name, self._given)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the file, row in it)."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def _encoded(self, index: int) -> bytes:
        number, row = self._place(index)
        return self._blobs[number].content(row)

    def image_name(self, index: int) -> str:
        number, row = self._place(index)
        return f"{printable(self._files[number])} row {row}"

    def fingerprint(self) -> str:
        return hash_of([*self._columns.named, *named_stamps(self._files)])

    def sizes_fingerprint(self) -> str:
        return hash_of([part for path in self._files for part in (path.name, stamp(path)[0])])


def _open(path: Path) -> Any:
    """The parquet file. Raises UserError where it is damaged, or pyarrow is missing."""
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{printable(path)} is read with the package pyarrow, which is not installed; install it: "
            "pip install 'causalfusion[data]' -c constraints.txt"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise UserError(
            f"{printable(path)} is not a whole parquet file ({brief(error)}); copy it again"
        ) from None


def _chosen(file: Any, given: Columns, path: Path) -> Columns:
    """The columns to read. Raises UserError."""
    names = file.schema_arrow.names
    holding = [name for name in names if _holds_bytes(file.schema_arrow.field(name).type)]
    return choose_columns(names, holding, given, str(path))


def _holds_bytes(kind: Any) -> bool:
    """True for a column of bytes, or of {bytes, path}."""
    return str(kind) in ("binary", "large_binary") or str(kind).startswith("struct<bytes: binary")


def _class_names(file: Any, column: str) -> list[str]:
    """Names of numbered classes in the features that the hub's `datasets` writes beside the columns."""
    stored = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(stored)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _values(files: list[Any], column: str) -> list[Any]:
    """All values of a column; none without one."""
    if not column:
        return []
    return [value for file in files for value in file.read(columns=[column])[column].to_pylist()]


def _unpack(path: Path, file: Any, column: str) -> Unpacked:
    """The pictures of a column in the cache. Raises UserError."""
    name = f"{hash_of([path.resolve(), *stamp(path), column])}-{path.stem}.images"
    return unpack(cache_folder("parquet") / name, _pictures(file, column), printable(path))


def _pictures(file: Any, column: str) -> Iterator[bytes]:
    """The encoded picture of each row; empty where it has none."""
    for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
        for value in batch.column(0).to_pylist():
            content = value.get("bytes") if isinstance(value, dict) else value
            yield content or b""


def holds_parquet(folder: str | os.PathLike[str]) -> bool:
    """True for a folder with parquet files, or with a folder `data` of such."""
    place = Path(folder)
    return any(True for pattern in ("*.parquet", "data/*.parquet") for _ in place.glob(pattern))
