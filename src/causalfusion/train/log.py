"""What a run tells: a JSON line and TensorBoard scalars per record, and a progress line.

`log.jsonl` belongs to the checkpoint that a run resumes from: later records are cut off, so that the file
of a resumed run is that of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import sys
import time
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


class ProgressLine:
    """One line that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self, total: int, done: int, *, enabled: bool = True, seconds_between: float = 10.0) -> None:
        self.total, self.first = total, done
        self.enabled, self.terminal = enabled, sys.stderr.isatty()
        self.seconds_between = 0.2 if self.terminal else seconds_between
        self.start = time.monotonic()
        self.last_shown = -1e9

    def show(self, done: int, text: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if not self.enabled or (now - self.last_shown < self.seconds_between and not force):
            return
        self.last_shown = now
        rate = (done - self.first) / max(now - self.start, 1e-9)
        left = (self.total - done) / rate if rate > 0 else float("nan")
        line = f"{done:>{len(str(self.total))}}/{self.total} images  {text}  {duration(left)} left"
        end = "" if self.terminal else "\n"
        print(f"\r\x1b[K{line}" if self.terminal else line, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.enabled and self.terminal:
            print(file=sys.stderr)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    if seconds != seconds:
        return "?"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
