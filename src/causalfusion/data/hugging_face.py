"""Data sets through Hugging Face `datasets`: on the hub (user/name), folders that it loads, and folders that
its `save_to_disk` wrote.

Training reads examples in an order of its own, and goes on at the exact place after a stop. A data set as
`datasets` keeps it on disk, in Arrow files, gives any row at once, and is read where it lies. A stream gives
its rows in one order alone: it is read once, from its beginning, and its pictures are unpacked in the user's
cache folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from causalfusion.data.columns import Columns, choose_columns
from causalfusion.data.table_images import TableImages
from causalfusion.data.unpacked import Unpacked, is_unpacked, unpack
from causalfusion.errors import UserError, brief, printable
from causalfusion.files import cache_folder, hash_of, named_stamps, write_whole

_SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote: several splits, or one data set."""
_ALIASES = {"validation": ("validation", "valid", "val", "dev")}
_FIRST_VERSION = 4
"""Earlier ones execute a script that a repository may hold."""


class Rows(Protocol):
    """A table's rows: encoded pictures by index, and all values of its other columns."""

    fingerprint: str
    class_names: list[str]
    """Names of numbered classes in the features; empty without them."""

    def __len__(self) -> int: ...
    def content(self, index: int) -> bytes: ...
    def values(self, column: str) -> list[Any]: ...


class HubImages(TableImages):
    """Images in the order of the data set's rows."""

    def __init__(
        self, path: str, columns: Columns, *, subset: str = "", split: str = "train", streaming: bool = False
    ) -> None:
        self.name, self._split = path, split
        table = _load(path, subset, split, streaming)
        chosen, names = _columns_of(table, columns, path), list(table.features)
        rows, table = _Streamed if streaming else _Mapped, _undecoded(table, chosen)
        self._rows: Rows = rows(table, chosen, path, f"{subset} {split}")
        if not len(self):
            raise UserError(f"{printable(path)} has no rows in the split {split}; expected images")
        labels, captions = (
            self._rows.values(column) if column else [] for column in (chosen.label, chosen.caption)
        )
        self._take(chosen, names, labels, self._rows.class_names, captions)

    def __len__(self) -> int:
        return len(self._rows)

    def _encoded(self, index: int) -> bytes:
        return self._rows.content(index)

    def image_name(self, index: int) -> str:
        return f"{printable(self.name)} {self._split} row {index}"

    def fingerprint(self) -> str:
        return hash_of([self._rows.fingerprint, *self._columns.named])

    def sizes_fingerprint(self) -> str:
        return self.fingerprint()


class _Mapped:
    """A data set on disk, read where it lies."""

    def __init__(self, table: Any, columns: Columns, path: str, part: str) -> None:
        self._table, self._pictures = table, table.select_columns([columns.image])
        self.class_names = _names_of(table, columns)
        files = sorted(file["filename"] for file in table.cache_files)
        self.fingerprint = hash_of([path, part, len(table), *named_stamps(map(Path, files))])

    def __len__(self) -> int:
        return len(self._table)

    def content(self, index: int) -> bytes:
        return _encoded(next(iter(self._pictures[index].values())))

    def values(self, column: str) -> list[Any]:
        return self._table.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()


class _Streamed:
    """A stream, read once: its pictures and other columns in the user's cache folder."""

    def __init__(self, table: Any, columns: Columns, path: str, part: str) -> None:
        self.class_names, named = _names_of(table, columns), columns.named
        self.fingerprint = hash_of([_identity(path), part, *named])
        name = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
        blob = cache_folder("datasets") / f"{self.fingerprint}-{name[:80]}.images"
        lines = blob.with_suffix(".jsonl")
        if not (lines.is_file() and is_unpacked(blob)):
            kept: list[str] = []
            blob.unlink(missing_ok=True)  # pictures whose lines a stop left out: the stream is read anew
            unpack(blob, _unrolled(table, columns, kept, path), printable(path))
            write_whole(lines, "".join(kept))
        self._pictures, self._columns = Unpacked(blob), named[1:]
        self._values = [json.loads(line) for line in lines.read_bytes().splitlines()]

    def __len__(self) -> int:
        return len(self._pictures)

    def content(self, index: int) -> bytes:
        return self._pictures.content(index)

    def values(self, column: str) -> list[Any]:
        place = self._columns.index(column)
        return [values[place] for values in self._values]


def _unrolled(table: Iterable[Any], columns: Columns, kept: list[str], path: str) -> Iterator[bytes]:
    """The pictures of a stream; a line of JSON with each row's other columns is appended to `kept`."""
    try:
        for row in table:
            kept.append(json.dumps([row[name] for name in columns.named[1:]]) + "\n")
            yield _encoded(row[columns.image])
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"the stream of {printable(path)} ended after {len(kept):,} rows ({brief(error)}); run the same "
            "command again: it is read anew"
        ) from error


def _encoded(value: Any) -> bytes:
    """The encoded picture of a cell: bytes, or {bytes, path}, of which either may be missing."""
    if not isinstance(value, dict):
        return value or b""
    if value.get("bytes") or not value.get("path"):
        return value.get("bytes") or b""
    from fsspec import open as open_anywhere

    with open_anywhere(value["path"], "rb") as stream:
        return stream.read()  # pyright: ignore[reportAttributeAccessIssue]


def saved_to_disk(folder: str | os.PathLike[str]) -> bool:
    """True for a folder that `save_to_disk` wrote."""
    place = Path(folder)
    return (place / _SAVED[0]).is_file() or all(
        (place / name).is_file() for name in (_SAVED[1], "dataset_info.json")
    )


def _load(path: str, subset: str, split: str, streaming: bool) -> Any:
    """The data set, whose pictures stay encoded. Raises UserError."""
    datasets = _library(path)
    revision = None
    if os.path.isdir(path):
        if saved_to_disk(path):
            return _from_disk(datasets, path, split, streaming)
    elif "://" in path or path.count("/") != 1:
        raise UserError(
            f"data.path {printable(path)} is no folder and no data set's name; expected user/name, "
            "user/name@revision, or a folder"
        )
    else:
        path, _, revision = path.partition("@")
    try:
        known = datasets.get_dataset_split_names(path, subset or None, revision=revision or None)
        return datasets.load_dataset(
            path,
            subset or None,
            split=_split_among(known, split, path),
            revision=revision or None,
            streaming=streaming,
        )
    except UserError:
        raise
    except Exception as error:  # its own errors, the hub's, those of networks, and of damaged files
        raise UserError(
            f"datasets cannot load {printable(path)} ({brief(error)}); check the name, data.subset, and, "
            "for a private one, HF_TOKEN"
        ) from error


def _from_disk(datasets: Any, path: str, split: str, streaming: bool) -> Any:
    if streaming:
        raise UserError(
            f"data.streaming is on, and {printable(path)} is on this disk already, written by save_to_disk: "
            "it is read where it lies; leave data.streaming out"
        )
    try:
        table = datasets.load_from_disk(path)
    except Exception as error:  # of damaged files, many kinds
        raise UserError(
            f"datasets cannot load {printable(path)} ({brief(error)}); it is damaged: copy it again"
        ) from error
    if isinstance(table, datasets.DatasetDict):
        return table[_split_among(list(table), split, path)]
    return table


def _split_among(known: Sequence[str], split: str, path: str) -> str:
    found = next((name for name in _ALIASES.get(split, (split,)) if name in known), None)
    if found is None:
        raise UserError(
            f"data.split is {split}, which {printable(path)} has not; it has "
            f"{', '.join(map(printable, known))}"
        )
    return found


def _library(path: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{printable(path)} is read with the package datasets, which is not installed; install it: "
            "pip install 'causalfusion[data]' -c constraints.txt"
        ) from None
    if int(datasets.__version__.split(".")[0]) < _FIRST_VERSION:
        raise UserError(
            f"datasets {datasets.__version__} executes scripts of data sets; expected version "
            f"{_FIRST_VERSION} or later: pip install --upgrade datasets"
        )
    return datasets


def _columns_of(table: Any, given: Columns, path: str) -> Columns:
    """The columns to read. Raises UserError."""
    if table.features is None:
        raise UserError(
            f"{printable(path)} does not say which columns its stream has; leave data.streaming out"
        )
    holding = [name for name, feature in table.features.items() if _holds_pictures(feature)]
    return choose_columns(list(table.features), holding, given, path)


def _undecoded(table: Any, columns: Columns) -> Any:
    """The data set with the columns that are read, pictures encoded as they are stored."""
    table, feature = table.select_columns(columns.named), table.features[columns.image]
    if type(feature).__name__ != "Image":
        return table
    return table.cast_column(columns.image, type(feature)(decode=False))


def _holds_pictures(feature: Any) -> bool:
    kind = type(feature).__name__
    return kind == "Image" or (kind == "Value" and feature.dtype in ("binary", "large_binary"))


def _names_of(table: Any, columns: Columns) -> list[str]:
    feature = table.features[columns.label] if columns.label else None
    return [str(name) for name in getattr(feature, "names", None) or ()]


def _identity(path: str) -> str:
    """What tells a data set from others: of a local folder, its files too."""
    if not os.path.isdir(path):
        return path
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return hash_of([Path(path).resolve(), *named_stamps(files)])
