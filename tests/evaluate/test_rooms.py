"""The rooms of `evaluate`: each imports only from those before it, and none from the files above them."""

import ast
from pathlib import Path

import pytest

import causalfusion.evaluate

ROOMS = ("measures", "samples", "features", "references", "cards")
FOLDER = Path(causalfusion.evaluate.__file__).parent


def test_these_are_all_rooms():
    assert {path.parent.name for path in FOLDER.glob("*/*.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_before_it(room):
    earlier = ROOMS[: ROOMS.index(room) + 1]
    for path in (FOLDER / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("causalfusion.evaluate"):
                assert node.module and node.module.split(".")[2] in earlier, f"{path.name}: {node.module}"
