"""The progress line of long computations."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from typing import TextIO


class ProgressLine:
    """A line that is rewritten on a terminal, and printed every `seconds_between` elsewhere."""

    def __init__(
        self,
        total: int,
        done: int,
        *,
        enabled: bool = True,
        seconds_between: float = 10.0,
        what: str = "images",
    ) -> None:
        self.total, self.first, self.what = total, done, what
        self.enabled, self.terminal = enabled, sys.stderr.isatty()
        self.seconds_between = 0.2 if self.terminal else seconds_between
        self.start = time.monotonic()
        self.last_shown = -1e9

    def due(self) -> bool:
        """True if the next `show` prints the line."""
        return self.enabled and time.monotonic() - self.last_shown >= self.seconds_between

    def show(self, done: int, text: str, *, force: bool = False, limit: float = math.inf) -> None:
        """Print the line if it is due or `force` is set. `limit` is the number of seconds after which the
        work ends even if it is not complete."""
        if not (self.enabled and force) and not self.due():
            return
        self.last_shown = now = time.monotonic()
        rate = (done - self.first) / max(now - self.start, 1e-9)
        left = (self.total - done) / rate if rate > 0 else math.nan
        whole = f"{done:>{len(str(self.total))}}/{self.total}" if not left > limit else f"{done:,}"
        line = f"{whole} {self.what}  {text}  {duration(min(left, limit))} left"
        end = "" if self.terminal else "\n"
        tell(f"\r\x1b[K{line}" if self.terminal else line, end=end, stream=sys.stderr)

    def close(self) -> None:
        if self.enabled and self.terminal:
            tell("", stream=sys.stderr)


def tell(text: str, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print a line, to standard output by default. If the terminal or the reader of a pipe is gone, later
    output is discarded, so that the work itself continues."""
    target = sys.stdout if stream is None else stream
    try:
        print(text, end=end, file=target, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):  # the buffer must still be flushed somewhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), _descriptor(target))


def _descriptor(stream: TextIO) -> int:
    return stream.fileno()


def duration(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03; "?" for NaN."""
    if seconds != seconds:
        return "?"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def seconds_of_command(otherwise: float) -> float:
    """Seconds since this process started, if it is a causalfusion command: they include the start of Python
    and the loading of the model. `otherwise` in any other process, or if the system does not say."""
    main = sys.modules.get("__main__")
    module = getattr(getattr(main, "__spec__", None), "name", "") or ""
    script = os.path.basename(getattr(main, "__file__", None) or "")
    if not module.startswith("causalfusion.") and not script.startswith("causalfusion"):
        return otherwise
    try:
        with open("/proc/self/stat", "rb") as stream:
            ticks = int(stream.read().rpartition(b")")[2].split()[19])  # proc(5): field 22, starttime
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return otherwise
    return max(age, otherwise)
