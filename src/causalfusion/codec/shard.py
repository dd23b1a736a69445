"""Writing the shards of a latent cache, each atomically and with a note.

Every file is written under a temporary name, flushed and renamed. A shard is finished when its note
(`00000.json`: labels, captions, sums) lies beside it. The note holds everything on which the shard's content
depends, so that a resumed run keeps finished shards of the same settings and touches no others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from causalfusion.codec.blocks import num_values, stored_order
from causalfusion.config.serialize import from_dict, read_json, to_dict
from causalfusion.data.loader import Batch
from causalfusion.data.reader import allowed_unreadable
from causalfusion.errors import UserError
from causalfusion.files import write_whole


@dataclass
class Tally:
    """Counts of encoded images, and of images that were replaced because they cannot be read."""

    num_images: int
    progress: Callable[[int], None]
    done: int = 0
    replaced: int = 0

    def add(self, done: int, replaced: int) -> None:
        """Raises UserError if too many images had to be replaced."""
        self.done, self.replaced = self.done + done, self.replaced + replaced
        allowed = allowed_unreadable(self.num_images)
        if self.replaced > allowed:  # the limit of training, too
            raise UserError(
                f"{self.replaced} of {self.num_images} images cannot be read, more than {allowed}; the "
                "warnings above name them: remove or repair them"
            )
        self.progress(self.done)


@dataclass(frozen=True)
class Shard:
    file: Path
    start: int
    count: int
    sizes: np.ndarray | None = None
    """(count, 2) latent height and width of each image, 0 for one that is left out; None: one size."""

    @property
    def stored(self) -> np.ndarray:
        """(stored,) indices into the source of its images, in the order in which they are stored."""
        order = np.arange(self.count) if self.sizes is None else stored_order(self.sizes)
        return self.start + order

    def batches(self, batch_size: int) -> list[np.ndarray]:
        """Its images in that order, in batches of one size."""
        indices = self.stored
        if self.sizes is None:
            parts = [indices]
        else:
            changes = np.diff(self.sizes[indices - self.start], axis=0).any(axis=1)
            parts = np.split(indices, np.flatnonzero(changes) + 1)
        return [part[k : k + batch_size] for part in parts for k in range(0, len(part), batch_size)]

    @property
    def note_file(self) -> Path:
        return self.file.with_suffix(".json")

    def read_note(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The note of a finished shard of this identity; None if the shard has to be written (again)."""
        note = read_note(self.note_file)
        if note is None or note["content"] != identity or not self.file.is_file():
            return None
        return note if note["bytes"] == self.file.stat().st_size else None

    def write(
        self, encoded: Iterator[tuple[Batch, np.ndarray, np.ndarray]], identity: dict[str, Any], tally: Tally
    ) -> None:
        """Write this shard and its note from the stream of encoded batches, none of which crosses its end."""
        note: dict[str, Any] = {"replaced": 0, "labels": [], "captions": [], "contents": ""}
        note |= {"sum": 0.0, "squares": 0.0, "variances": 0.0}  # sums of means, means² and deviations²
        variants = 2 if identity["flip"] else 1
        shape = (self.count, variants, identity["moments"], *identity["latent_shape"])
        stored = len(self.stored)
        if self.sizes is not None:
            shape = (num_values(self.sizes, math.prod(shape[1:4])),)
        dtype = np.dtype(identity["dtype"]).newbyteorder("<")

        def content(stream: BinaryIO) -> None:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            while len(note["labels"]) < stored:
                batch, moments, hashes = next(encoded)
                stream.write(moments.astype(dtype, copy=False).tobytes())
                means, deviations = moments[:, 0, 0].astype(np.float64), moments[:, 0, 1:].astype(np.float64)
                note["sum"] += float(means.sum())
                note["squares"] += float(np.square(means).sum())
                note["variances"] += float(np.square(deviations).sum())
                note["labels"] += batch.labels.tolist()
                note["captions"] += batch.all_captions
                note["contents"] += hashes.tobytes().hex()
                replaced = int((batch.image_indices != batch.sample_indices).sum())
                note["replaced"] += replaced
                tally.add(len(batch.labels), replaced)
            tally.add(self.count - stored, 0)

        self.note_file.unlink(missing_ok=True)  # an old note must never lie beside the new shard
        write_whole(self.file, content)
        note |= {"content": identity, "bytes": self.file.stat().st_size}
        write_whole(self.note_file, lambda stream: stream.write(json.dumps(note).encode()))


@dataclass(frozen=True)
class _Note:
    """The fields of a note and their types."""

    content: dict[str, Any]
    """The identity of the cache."""
    bytes: int
    replaced: int
    labels: list[int]
    captions: list[list[str]]
    sum: float
    squares: float
    variances: float
    contents: str = ""
    """Hashes of the images' data, in hexadecimal; notes of earlier versions have none."""


def read_note(file: Path) -> dict[str, Any] | None:
    """A shard's note; None if the file is missing or no valid note: the shard is then written again."""
    try:
        values = read_json(file, "a note")
        return to_dict(from_dict(_Note, values)) if isinstance(values, dict) else None
    except UserError:
        return None
