"""docs/recipes.md says what the recipes are; what it calls measured stands in docs/results.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.recipes_page import (  # noqa: E402
    CORE,
    EXPECTED,
    TARGET,
    comment_of,
    page,
    run_section,
)

from causalfusion.config.recipes import load_layer, recipe_names  # noqa: E402


def section(name: str) -> str:
    """The part of docs/results.md below a heading."""
    text = (ROOT / "docs" / "results.md").read_text()
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in parts[1::2]]
    return parts[2::2][anchors.index(name)]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_was_measured_stands_in_the_results(name: str):
    text, anchor = EXPECTED[name]
    said = section(anchor).replace("%", " %")
    for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text.replace("S = ", "")):
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?:\.0)?(?![\d])", said), f"{name}: {number}"


@pytest.mark.parametrize("name", ["digits", "shapes", "graft-shapes"])
def test_a_section_is_as_its_recipe(name: str):
    assert run_section(name, CORE, 1) in TARGET.read_text()


@pytest.mark.parametrize("name", recipe_names())
def test_a_description_is_as_its_recipe(name: str):
    said = comment_of(name)
    assert len(said) > 10
    if "data" in load_layer(name):
        assert f"### {name}\n\n{said}\n" in TARGET.read_text()


@pytest.mark.slow
def test_the_page_is_as_the_recipes():
    assert page() == TARGET.read_text(), "run python -m benchmarks.recipes_page"
