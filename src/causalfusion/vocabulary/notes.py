"""Notes and errors of a command: one line each, on stderr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from causalfusion.errors import printable

PACKAGE = str(Path(__file__).resolve().parents[1])


MAX_LINE = 1200
"""Most characters of a note; a longer one is cut."""


def say(text: str, kind: str = "note: ") -> None:
    """Print a text as one line. Of several processes (`torchrun`), only the first prints notes."""
    if kind == "note: " and os.environ.get("RANK", "0") != "0":
        return
    line = printable(" ".join(str(text).split()))
    if len(line) > MAX_LINE:  # it repeats a long value; the remedy is at the end
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 4 :]}"
    start = "\r\x1b[K" if sys.stderr.isatty() else ""  # overwrites a progress line
    print(f"{start}{kind}{line}", file=sys.stderr, flush=True)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print warnings of this package as notes, each text once; those of other packages are shown as usual."""
    said: set[str] = set()
    with warnings.catch_warnings():
        as_python_does = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = str(message)
            if not filename.startswith(PACKAGE):
                as_python_does(message, category, filename, lineno, file, line)
            elif text not in said:
                said.add(text)
                say(text)

        warnings.showwarning = show
        yield
