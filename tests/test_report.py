from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from causalfusion.show.report import Fact, Report, Section, render


class Outline(HTMLParser):
    """Texts, table cells and tags of a page; complains about tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.effect_noise((20, 10), 50).save(path)
    return path


def page_of(picture: Path) -> tuple[str, Outline]:
    page = render(
        Report(
            title="A <b>title</b> & more",
            introduction=["First.", "Second."],
            headline=[Fact("of samples", "97.5%")],
            sections=[Section("Pictures", ["What <it> is."], picture, [["S", "1"], ["share", "99%"]])],
            fact_tables={"Model": [Fact("parameters", "12,345")]},
            commands=["causalfusion demo --out 'a & b'"],
        )
    )
    outline = Outline()
    outline.feed(page)
    return page, outline


def test_page_carries_its_pictures_and_refers_to_nothing_outside(picture: Path) -> None:
    page, outline = page_of(picture)
    (source,) = outline.images
    kind, content = source.split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == picture.read_bytes()
    assert not re.search(r"https?://|<link|<script|@import|url\(", page)


def test_texts_are_escaped_and_tags_are_closed(picture: Path) -> None:
    page, outline = page_of(picture)
    assert outline.open == []
    assert "A <b>title</b> & more" in outline.texts
    assert "<b>title" not in page
    assert "What <it> is." in outline.texts
    assert "causalfusion demo --out 'a & b'" in "".join(outline.texts)


def test_tables_hold_every_cell_in_order(picture: Path) -> None:
    _, outline = page_of(picture)
    assert outline.cells == ["S", "1", "share", "99%", "Model", "parameters", "12,345"]
