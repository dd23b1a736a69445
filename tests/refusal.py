"""What a command says that is refused."""

from __future__ import annotations

import pytest

from causalfusion.cli import run


def refused(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    """The one line of a command that is refused, but for the progress."""
    capsys.readouterr()
    assert run(line) == 2
    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith("causalfusion: ")]
    assert len(lines) == 1
    return lines[0]
