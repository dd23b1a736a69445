"""What a run leaves behind: a JSON line and TensorBoard scalars per record.

`log.jsonl` belongs to the checkpoint that a run resumes from: later records are cut off, so that the file
of a resumed run is that of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
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
        self._file.write(json.dumps({"kind": kind, "images_seen": images_seen, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{name}", value, images_seen)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
