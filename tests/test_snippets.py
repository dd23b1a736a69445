"""The Python of the README and of all pages is code that runs, in the order in which it stands.

A block below `<!-- not run: why -->` is compiled only; a page with `<!-- slow: why -->` runs with the slow
tests.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    str(path.relative_to(ROOT))
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    if BLOCK.search(path.read_text())
]
QUICK, SLOW = [], []
for _page in PAGES:
    (SLOW if "<!-- slow:" in (ROOT / _page).read_text() else QUICK).append(_page)


def two_pictures(folder: Path, digits_run: Path) -> None:
    shutil.copytree(digits_run, folder / "runs" / "digits")
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8), 90).save(folder / name)


NEEDED: dict[str, Callable[[Path, Path], None]] = {"docs/representation.md": two_pictures}
"""What a page's code finds in its folder."""


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, digits_run: Path) -> dict:
    """The names that the blocks of a page leave behind."""
    monkeypatch.chdir(folder)
    if page in NEEDED:
        NEEDED[page](folder, digits_run)
    names: dict = {}
    for mark, code in BLOCK.findall((ROOT / page).read_text()):
        compiled = compile(code, page, "exec")
        if not mark:
            exec(compiled, names)
    return names


@pytest.mark.parametrize("page", QUICK)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch, digits_run):
    names = run(page, tmp_path, monkeypatch, digits_run)
    for value in names.values():
        assert not isinstance(value, torch.Tensor) or torch.isfinite(value).all()
    if page == "docs/guides/python.md":
        assert names["images"].shape == (1, 3, 32, 32) and (tmp_path / "circle.png").is_file()
        assert names["tokens"].shape == (4, 64, 48)
    if page == "docs/guides/edit.md":
        assert bool((names["edited"][..., :16] == 1).all()), "the left half stays white"


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_slow_python_of_a_page_runs(page, tmp_path, monkeypatch, digits_run):
    run(page, tmp_path, monkeypatch, digits_run)


def test_all_python_is_marked_as_such():
    """No Python stands in blocks that nothing runs."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        assert not re.search(
            r"^ {4}(import \w+$|from \w[\w.]* import |pipe(line)? = )", path.read_text(), re.MULTILINE
        ), path
