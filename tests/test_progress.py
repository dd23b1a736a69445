"""The line of progress: plain without a terminal, else drawn in the terminal's width."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

SHOW = """
from causalfusion.machine.progress import ProgressLine
line = ProgressLine(64000, 0, seconds_between=0.0)
line.seconds_between = 0.0
line.start -= 100
for done in (0, 16000, 64000):
    line.show(done, "loss 0.1234  345 images/s  12% of peak FLOP/s")
line.show(20000, "by time", limit=50.0)
line.close()
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def lines_on_terminal(width: int) -> list[str]:
    """The line on a terminal of this many columns, once for each time that it is rewritten."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-c", SHOW]
    process = subprocess.Popen(command, stderr=theirs, env={**environment, "TERM": "xterm-256color"})
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    first, *lines = written.decode().split("\r\x1b[K")
    assert not first and lines[-1].endswith("\r\n") and "\n" not in "".join(lines[:-1])
    return [COLOUR.sub("", line).rstrip("\r\n") for line in lines]


def test_without_a_terminal_lines_are_plain():
    found = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert not found.stdout and found.stderr.splitlines() == [
        "    0/64000 images  loss 0.1234  345 images/s  12% of peak FLOP/s  ? left",
        "16000/64000 images  loss 0.1234  345 images/s  12% of peak FLOP/s  5:00 left",
        "64000/64000 images  loss 0.1234  345 images/s  12% of peak FLOP/s  0:00 left",
        "20,000 images  by time  0:50 left",
    ]


def test_a_wide_terminal_shows_a_bar():
    empty, quarter, full, by_time = lines_on_terminal(120)
    bar, text = quarter.split("  ", 1)
    assert len(bar) == 24 and set(bar) <= set("━╸╺")
    assert text.startswith("16000/64000 images  5:00 left  loss 0.1234  345 images/s")
    assert full.startswith("━" * 24) and empty.split("  ", 1)[0] == "━" * 24  # they differ in colour
    assert by_time.split("  ", 1)[1] == "20,000 images  0:50 left  by time"


@pytest.mark.parametrize("width", [30, 60, 80])
def test_no_line_is_wider_than_the_terminal(width):
    lines = lines_on_terminal(width)
    assert all(len(line) < width for line in lines)
    assert "16000/64000 images  5:00" in lines[1]
