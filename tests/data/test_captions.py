"""Captions: of text files and folders, refused where they do not match; one drawn for each epoch."""

from __future__ import annotations

import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.data.captions import captions_of_record, captions_of_text, draw_caption
from causalfusion.data.class_captions import read_words
from causalfusion.data.folder import ImageFolder
from causalfusion.data.loader import Loader, load_indices
from causalfusion.data.picture import UnreadableImage
from causalfusion.errors import UserError


def write(folder: Path, *names: str) -> Path:
    """Images, and caption files that say their own name."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt"):
            place.write_text(f"says {name}\n", "utf-8")
        else:
            Image.new("RGB", (4, 4)).save(place)
    return folder


def captions(folder: Path) -> list[tuple[str, ...]]:
    source = open_source(DataConfig(source="folder", path=str(folder)))
    assert source.has_captions == bool(source.read(0).captions)
    return [source.read(index).captions for index in range(len(source))]


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"]))))
def test_every_line_that_is_not_blank_is_a_caption(lines):
    expected = tuple(line.strip() for line in lines if line.strip())
    for end, start in itertools.product(("\n", "\r\n", "\r"), ("", "\ufeff")):
        content = (start + end.join(lines)).encode()
        if expected:
            assert captions_of_text(content, "x") == expected
        else:
            with pytest.raises(UnreadableImage, match="x: the caption file is blank"):
                captions_of_text(content, "x")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"caption": " ein grüner Kreis 🟢\n"}, (" ein grüner Kreis 🟢\n",)),
        ({"captions": ["a", "b\nc"]}, ("a", "b\nc")),
        ({"caption": None, "captions": ["a"]}, ("a",)),
        ({"caption": "", "text": "no"}, ()),
        ({}, ()),
    ],
)
def test_captions_of_records(record, expected):
    assert captions_of_record(record, "x") == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": "a", "captions": ["b"]}, "x has `caption` and `captions`; expected one of them"),
        ({"caption": 3}, "x: `caption` is 3; expected a string"),
        ({"caption": ["a"]}, 'x: `caption` is ["a"]; expected a string'),
        ({"caption": " \n"}, "x: `caption` is blank; expected text"),
        ({"captions": []}, "x: `captions` is []; expected a list of strings, not empty"),
        ({"captions": "a" * 90}, 'x: `captions` is "' + "a" * 36 + "...; expected a list of strings"),
        ({"captions": ["a", None]}, "x: `captions[1]` is null; expected a string"),
        ({"captions": ["a", ""]}, "x: `captions[1]` is blank"),
        ({"caption": "\ud83d"}, "x: `caption` is not valid Unicode"),
    ],
)
def test_records_that_are_refused(record, message):
    with pytest.raises(UserError, match=re.escape(message)):
        captions_of_record(record, "x")


def test_folder_takes_the_text_beside_each_image(tmp_path):
    write(tmp_path, "b/photo.v1.PNG", "b/photo.v1.txt", "a/deep/x.jpg", "a/deep/x.txt", "classes.txt")
    write(tmp_path, "a/._x.txt")
    (tmp_path / "b" / "photo.v1.txt").write_text("ein Kreis – ⭐\n\n  two  \r\n", "utf-8")
    assert captions(tmp_path) == [("says a/deep/x.txt",), ("ein Kreis – ⭐", "two")]
    before = ImageFolder(str(tmp_path)).fingerprint()
    (tmp_path / "b" / "photo.v1.txt").write_text("longer than it was before", "utf-8")
    assert ImageFolder(str(tmp_path)).fingerprint() != before
    assert captions(write(tmp_path / "flat", "1.png", "1.jpg", "1.txt")) == [("says 1.txt",)] * 2


def test_folder_without_any_caption_leaves_other_texts_alone(tmp_path):
    assert captions(write(tmp_path, "0.png", "1.png", "README.txt", "classes.txt")) == [(), ()]


def test_caption_files_that_do_not_match_the_images_are_refused(tmp_path):
    write(tmp_path, *(f"{n}.png" for n in range(4)), "1.txt", "3.txt")
    missing = r"/0\.png has no caption file 0\.txt beside it while others do \(2 of 4 images have none\); exp"
    with pytest.raises(UserError, match=missing):
        ImageFolder(str(tmp_path))
    write(tmp_path, "0.txt", "2.txt", "4.txt", "README.txt")
    with pytest.raises(UserError, match=r"the caption file .*/4\.txt has no image of the same name"):
        ImageFolder(str(tmp_path))
    (tmp_path / "4.txt").unlink()
    (tmp_path / "README.txt").unlink()
    source = ImageFolder(str(tmp_path))
    (tmp_path / "0.txt").write_bytes("ein grüner Kreis".encode("latin-1"))
    (tmp_path / "1.txt").write_bytes(b" \n\n")
    with pytest.raises(
        UnreadableImage, match=r"0\.txt: the caption file is not UTF-8 \(byte 6 is 0xfc\); save"
    ):
        source.read(0)
    with pytest.raises(
        UnreadableImage, match=r"1\.txt: the caption file is blank; expected a caption on each"
    ):
        source.read(1)


def test_bad_caption_stops_a_run_with_workers_in_one_line(tmp_path):
    write(tmp_path, "0.png", "0.txt", "1.png", "1.txt")
    (tmp_path / "1.txt").write_bytes(b"\xff")
    loader = Loader(ImageFolder(str(tmp_path)), DataConfig(num_workers=1), seed=0, batch_size=2)
    with (
        pytest.warns(UserWarning, match=r"1\.txt: the caption file is not UTF-8"),
        pytest.raises(UserError, match=r"^1 of 2 images cannot be read.*1\.txt: .* is not UTF-8 .*$"),
    ):
        next(loader.iterate(0))


def test_each_caption_of_an_image_comes_up_equally_often_over_the_epochs():
    three = ("a", "b", "c")
    drawn = np.array([[draw_caption(three, seed=1, epoch=e, index=i) for e in range(300)] for i in range(20)])
    for caption in three:
        share = (drawn == caption).mean(axis=1)
        assert abs(share.mean() - 1 / 3) < 0.02 and share.min() > 0.22 and share.max() < 0.45
    # Epochs are independent of each other, and so are images: 1/3 of all pairs are equal.
    for equal in (np.equal(drawn[:, 1:], drawn[:, :-1]), np.equal(drawn[1:], drawn[:-1])):
        assert abs(equal.mean() - 1 / 3) < 0.02
    other = [draw_caption(three, seed=2, epoch=e, index=0) for e in range(300)]
    assert 0.2 < np.mean([str(a) == b for a, b in zip(drawn[0], other, strict=True)]) < 0.47
    assert draw_caption((), seed=1, epoch=0, index=0) is None


def test_a_run_meets_both_captions_and_evaluation_the_first(tmp_path):
    write(tmp_path, *(f"{n}.png" for n in range(10)))
    for n in range(10):
        (tmp_path / f"{n}.txt").write_text(f"first {n}\nsecond {n}\n")
    source = ImageFolder(str(tmp_path))
    batches = list(itertools.islice(Loader(source, DataConfig(), seed=3, batch_size=10).iterate(0), 30))
    for batch in batches:
        for index, caption, both in zip(
            batch.image_indices.tolist(), batch.captions, batch.all_captions, strict=True
        ):
            assert both == (f"first {index}", f"second {index}") and caption in both
    firsts = [str(caption).startswith("first") for batch in batches for caption in batch.captions]
    assert 0.4 < np.mean(firsts) < 0.6
    assert load_indices(source, np.array([7, 2]), DataConfig()).captions == ["first 7", "first 2"]


@pytest.mark.parametrize("source", ["digits", "npz", "folder"])
def test_only_made_up_data_has_splits(source):
    with pytest.raises(
        UserError,
        match=rf"data\.split is 'test'; only .* shapes, in_context, datasets have splits, {source} has none",
    ):
        open_source(DataConfig(source=source, path="x", split="test"))


def test_words_of_a_class_are_found_in_any_unicode_form(tmp_path: Path):
    decomposed = unicodedata.normalize("NFD", "café")
    (tmp_path / "words.txt").write_text(f"{decomposed} a small café\ndog a dog\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt", ["café", "dog"]) == ["a small café", "a dog"]
