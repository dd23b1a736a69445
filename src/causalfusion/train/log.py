"""The log of a run: a JSON line per record, and the same numbers and pictures for other tools' charts.

`log.jsonl` belongs to the checkpoint that a run resumes from: later records are cut off, so that the file
of a resumed run is that of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalfusion.files import write_whole
from causalfusion.train.loggers import Logger, open_loggers

_NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "train": {"loss": (int, float, type(None))},
    "evaluation": {"mean": (int, float, type(None)), "by_timestep": list, "by_progress": dict},
}
"""Fields that charts and reports read of a kind of record."""


class RunLog:
    """The log of a run that goes on from `images_seen` images. What cannot be written does not end the run by
    itself: `failure` says what to tell the user, and nothing more is written."""

    def __init__(
        self,
        run: Path,
        images_seen: int,
        log_to: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = run / "log.jsonl"
        self.failure = ""
        self._keep_until(images_seen)
        self._file = self.path.open("a", encoding="utf-8")
        self._loggers = open_loggers(log_to, run, images_seen, settings or {})

    def _keep_until(self, images_seen: int) -> None:
        if not self.path.exists():
            return
        kept = [r for r in read_log(self.path) if r["images_seen"] <= images_seen]
        write_whole(self.path, "".join(map(_line, kept)))

    def write(self, kind: str, images_seen: int, values: dict[str, Any]) -> None:
        if self.failure:
            return
        record = {"kind": kind, "images_seen": images_seen, **values}
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            self.failure = _not_written(self.path, error)
        numbers = dict(_scalars(values, kind))
        self._tell(lambda logger: logger.scalars(numbers, images_seen))

    @property
    def shows_pictures(self) -> bool:
        return bool(self._loggers)

    def picture(self, name: str, file: Path, images_seen: int) -> None:
        """Show a picture in the tools that the run logs to."""
        self._tell(lambda logger: logger.picture(name, file, images_seen))

    def _tell(self, what: Callable[[Logger], object]) -> None:
        """Files that cannot be written are a failure; another tool that fails is left out from then on, and
        the run goes on."""
        for logger in [] if self.failure else list(self._loggers):
            try:
                what(logger)
            except Exception as error:
                if isinstance(error, OSError) and isinstance(logger.where, Path):
                    self.failure = _not_written(logger.where, error)
                    return
                self._loggers.remove(logger)
                warnings.warn(
                    f"{logger.where} takes no more records ({' '.join(str(error).split())[:200]}); the run "
                    f"goes on without it, and {self.path} has them all",
                    stacklevel=2,
                )

    def close(self) -> None:
        """Raises nothing: after a failure, what is left in the buffers cannot be written either."""
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or _not_written(self.path, error)
        for logger in self._loggers:
            try:
                logger.close()
            except Exception as error:
                self.failure = self.failure or _not_written(logger.where, error)


def _not_written(where: Path | str, error: Exception) -> str:
    return f"{where} could not be written ({getattr(error, 'strerror', None) or error})"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record)) + "\n"


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON: a bucket without tokens, or an infinite gradient norm, is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every finite number inside, under its path."""
    if isinstance(values, dict):
        for key, item in values.items():
            yield from _scalars(item, f"{name}/{key}")
    elif isinstance(values, list):
        for index, item in enumerate(values):
            yield from _scalars(item, f"{name}/{index:02d}")
    elif isinstance(values, int | float) and math.isfinite(values):
        yield name, values


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole records of a log. Damaged lines are left out, and counted in a warning; a last line cut short
    by a kill is not worth one."""
    *lines, last = path.read_bytes().split(b"\n")
    parsed = [_record(line) for line in lines if line.strip()]
    damaged = parsed.count(None)
    if damaged:
        text = f"{path}: {damaged} of {len(parsed)} lines are damaged and left out"
        warnings.warn(text, stacklevel=2)
    return [record for record in (*parsed, _record(last)) if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """A record; None where the line holds none, or one with values of other types than charts need."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    seen = record.get("images_seen")
    if not isinstance(seen, int) or isinstance(seen, bool) or seen < 0:
        return None
    needed = _NEEDED.get(record["kind"], {})
    fits = all(name in record and isinstance(record[name], kind) for name, kind in needed.items())
    return record if fits else None
