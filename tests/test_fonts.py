"""Letters in pictures: each in a font that has it; what none has is said."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from causalfusion.pictures import fonts
from causalfusion.pictures.compose import paragraph
from causalfusion.pictures.fonts import Face, dejavu, shown_as


def ink(text: str, face: Face | None = None) -> np.ndarray:
    canvas = Image.new("L", (300, 40), 0)
    (face or Face(16)).draw(ImageDraw.Draw(canvas), (10, 28), text, 255)  # pyright: ignore[reportArgumentType]
    return np.asarray(canvas)


@pytest.fixture
def no_system_fonts(monkeypatch):
    """A machine that has DejaVu alone."""
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    for cached in (fonts._file_of, fonts._warn_once):
        cached.cache_clear()
    yield
    for cached in (fonts._file_of, fonts._warn_once):
        cached.cache_clear()


@pytest.mark.parametrize("text", ["é", "Ж", "Ω", "ß", "ş", "“", "→"])
def test_letters_beyond_ascii_are_drawn_and_are_no_boxes(text, no_system_fonts):
    box = ink("\uffff", Face(16)), fonts._truetype(str(dejavu()), 16).getmask("\uffff")
    drawn = fonts._truetype(str(dejavu()), 16).getmask(text)
    assert ink(text).any() and bytes(drawn) != bytes(box[1])
    assert [str(font.path) for font, _ in Face(16).runs(text)] == [str(dejavu())]  # pyright: ignore


def test_a_letter_and_its_accent_are_one(no_system_fonts):
    assert (ink(unicodedata.normalize("NFD", "café")) == ink("café")).all()
    assert (ink("a\u200bb\x1b") == ink("ab")).all(), "what has no glyph leaves no trace"


def test_what_no_font_has_is_a_question_mark_and_said_once(no_system_fonts, recwarn):
    assert shown_as("語é x") == "?é x" and shown_as("文字") == "??"
    assert [str(w.message) for w in recwarn] == [
        'pictures show "?" for characters that no font of this machine has; install one that does, such as '
        "Noto Sans CJK"
    ]


def test_plain_ascii_keeps_its_font():
    ((font, part),) = Face(14).runs("a red circle")
    assert part == "a red circle" and font is fonts._plain(14)


def test_a_system_font_is_taken_for_what_dejavu_lacks(monkeypatch, no_system_fonts):
    """Here another face of DejaVu stands for it, said to have a character of Chinese."""
    bold = dejavu().with_name("DejaVuSans-Bold.ttf")
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ((bold, ((ord("語"), ord("語")),)),))
    runs = Face(16).runs("é 語é")
    assert [(str(font.path), part) for font, part in runs] == [  # pyright: ignore
        (str(dejavu()), "é "), (str(bold), "語"), (str(dejavu()), "é"),
    ]  # fmt: skip


def test_fonts_of_this_machine_are_files_with_characters():
    for file, ranges in fonts._system_fonts()[:20]:
        assert file.is_file() and all(low <= high for low, high in ranges)
    assert any(low <= ord("Ж") <= high for low, high in fonts._ranges_of(dejavu()))
    assert not any(low <= ord("語") <= high for low, high in fonts._ranges_of(dejavu()))


@given(st.text(max_size=30))
def test_any_text_can_be_drawn_on_one_line(text):
    shown = shown_as(text)
    assert "\n" not in shown and Face(12).getlength(text) >= 0
    assert paragraph(text, 90).width == 90
