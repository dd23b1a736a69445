"""What a run leaves behind: a JSON line and TensorBoard scalars per record.

`log.jsonl` belongs to the checkpoint that a run resumes from: later records are cut off, so that the file
of a resumed run is that of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RunLog:
    def __init__(self, run: Path, images_seen: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path = run / "log.jsonl"
        self._keep_until(images_seen)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=images_seen + 1)

    def _keep_until(self, images_seen: int) -> None:
        if not self.path.exists():
            return
        kept = [r for r in read_log(self.path) if r["images_seen"] <= images_seen]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        os.replace(temporary, self.path)

    def write(self, kind: str, images_seen: int, values: dict[str, Any]) -> None:
        record = {"kind": kind, "images_seen": images_seen, **values}
        self._file.write(json.dumps(_without_nan(record)) + "\n")
        self._file.flush()
        for name, value in _scalars(values, kind):
            self._board.add_scalar(name, value, images_seen)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _without_nan(value: Any) -> Any:
    """NaN is no JSON: a bucket without tokens is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _scalars(values: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number inside, under its path."""
    if isinstance(values, dict):
        for key, item in values.items():
            yield from _scalars(item, f"{name}/{key}")
    elif isinstance(values, list):
        for index, item in enumerate(values):
            yield from _scalars(item, f"{name}/{index:02d}")
    elif isinstance(values, int | float) and not math.isnan(values):
        yield name, values


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
