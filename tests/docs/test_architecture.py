"""The picture of docs/architecture.md has every room, on a floor that its imports allow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.architecture import FLOORS, SOURCE, imports_of  # noqa: E402

ROOMS = [room for _, rooms in FLOORS for room in rooms]


def test_every_room_is_in_the_picture():
    python = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert len(ROOMS) == len(set(ROOMS)) and set(ROOMS) == python | folders


def test_imports_go_down_or_to_the_left():
    for place, room in enumerate(ROOMS):
        assert {name for name in imports_of(room) if name in ROOMS} <= set(ROOMS[:place]), room
