"""The progress line of long computations.

On a terminal rich draws it, with a bar, in the terminal's width and colours. rich's own `Progress` does not
write it: tried with rich 15, a process that is killed leaves the terminal without its cursor, and one whose
terminal goes away ends with an OSError, where a training has to go on and save.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from typing import TextIO

WIDEST_BAR, NARROWEST_BAR = 24, 8
"""Columns of the bar; where there is room for less, it is left out."""


class ProgressLine:
    """A line that is rewritten on a terminal, with a bar before it, and printed every `seconds_between`
    elsewhere."""

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

    def show(self, done: float, text: str, *, force: bool = False, limit: float = math.inf) -> None:
        """Print the line if it is due or `force` is set. Of `done`, whole ones are printed, and the time left
        follows from all of it. `limit` is the number of seconds after which the work ends even if it is not
        complete."""
        if not (self.enabled and force) and not self.due():
            return
        self.last_shown = now = time.monotonic()
        elapsed = max(now - self.start, 1e-9)
        rate = (done - self.first) / elapsed
        left = (self.total - done) / rate if rate > 0 else math.nan
        by_time = left > limit
        finished = int(done)
        whole = f"{finished:,}" if by_time else f"{finished:>{len(str(self.total))}}/{self.total}"
        time_left = f"{duration(min(left, limit))} left"
        if self.terminal:
            share = elapsed / (elapsed + limit) if by_time else done / max(self.total, 1)
            line = with_bar(f"{whole} {self.what}  {time_left}  {text}", share)
            tell(f"\r\x1b[K{line}", end="", stream=sys.stderr)
        else:
            tell(f"{whole} {self.what}  {text}  {time_left}", stream=sys.stderr)

    def close(self) -> None:
        if self.enabled and self.terminal:
            tell("", stream=sys.stderr)


def with_bar(line: str, finished: float) -> str:
    """The line as standard error's terminal shows it: after a bar of which this share is full, and cut to the
    terminal's width, as one that wraps could not be rewritten."""
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    width = console.width - 1  # in the last column, some terminals wrap
    bar = min(WIDEST_BAR, width - len(line) - 2)
    row = Table.grid(padding=(0, 2, 0, 0))
    text = Text(line, no_wrap=True, overflow="crop")
    cells = [ProgressBar(total=1.0, completed=min(finished, 1.0), width=bar)] * (bar >= NARROWEST_BAR)
    row.add_row(*cells, text)
    with console.capture() as drawn:
        console.print(row, width=width)
    return drawn.get().rstrip("\n ")


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


def in_digits(value: float) -> str:
    """Three digits of a number below 100, else a whole one."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


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
