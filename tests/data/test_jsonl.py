"""JSONL files: lines to examples, whatever stands between them; each bad line is named with what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import UnreadableImage, open_source
from causalfusion.data.jsonl import JsonlImages
from causalfusion.data.lines import LineFile
from causalfusion.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0.png, 1.png, sub/2.png of the values 0, 1, 2."""
    (tmp_path / "sub").mkdir()
    for n, name in enumerate(("0.png", "1.png", "sub/2.png")):
        Image.new("RGB", (3, 2), (n, n, n)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *lines: object) -> JsonlImages:
    """Strings as they stand, all else as JSON."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "data.jsonl").write_text(text, "utf-8")
    source = open_source(DataConfig(source="jsonl", path=str(folder / "data.jsonl")))
    assert isinstance(source, JsonlImages)
    return source


def facts(source: JsonlImages) -> list[tuple[int, int | None, tuple[str, ...]]]:
    examples = [source.read(index) for index in range(len(source))]
    return [(int(example.image[0, 0, 0]), example.label, example.captions) for example in examples]


def test_lines_in_order_with_captions_and_class_names(folder):
    source = write(
        folder,
        '\ufeff{"image": "sub/../1.png", "caption": "ein grüner Kreis 🟢", "label": "circle", "url": "-"}',
        "",
        "  \t",
        {"image": "sub/2.png", "captions": ["un cercle", "円"], "label": "art"},  # escaped by json.dumps
        {"image": str(folder / "0.png"), "caption": "the same file", "label": "circle"},
        {"image": "0.png", "caption": "twice", "label": "circle"},
    )
    assert source.has_captions and source.class_names == ["art", "circle"]
    expected = [
        (1, 1, ("ein grüner Kreis 🟢",)),
        (2, 0, ("un cercle", "円")),
        (0, 1, ("the same file",)),
        (0, 1, ("twice",)),
    ]
    assert facts(source) == expected
    assert facts(pickle.loads(pickle.dumps(source))) == expected


def test_keys_that_are_not_used_are_counted_with_where_captions_are_read_from(folder):
    lines = {"image": "0.png", "text": "a dog", "url": "-"}, {"image": "1.png", "text": "a cat"}
    with pytest.warns(UserWarning) as caught:
        assert not write(folder, *lines).has_captions
    (warning,) = caught
    assert str(warning.message).endswith(
        "data.jsonl: left out: 2 x `text` (captions are read from `caption` or `captions`), 1 x `url`"
    )
    with pytest.raises(UserError, match=r"line 1: has no `image` but `file_name`, `text`; expected"):
        write(folder, {"file_name": "0.png", "text": "a dog"})


def test_found_from_any_folder_and_without_labels_or_captions(folder, monkeypatch):
    write(folder, {"image": "0.png"}, {"image": "sub/2.png", "caption": None, "label": None})
    monkeypatch.chdir(folder.parent)
    source = JsonlImages(os.path.join(folder.name, "data.jsonl"))
    monkeypatch.chdir("/")
    assert not source.has_captions and source.class_names == []
    assert [source.read(0).image[0, 0, 0], source.read(0).label, source.read(0).captions] == [0, None, ()]


def test_class_numbers(folder):
    source = write(folder, {"image": "0.png", "label": 2}, {"image": "1.png", "label": 0})
    assert source.class_names == ["0", "2"] and [found[1] for found in facts(source)] == [1, 0]


GOOD = {"image": "0.png", "caption": "good"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "0.png",', "line 3 is not valid JSON (Expecting property name"),
        (b'{"image": "\xff"}', "line 3 is not valid JSON ('utf-8' codec can't decode byte 0xff"),
        ("[" * 100_000, "line 3 is not valid JSON ("),
        ('["0.png"]', "line 3 is a JSON list; expected an object such as {"),
        ({"caption": "a"}, "line 3: has no `image`; expected the path of an image file"),
        ({"image": 3}, "line 3: `image` is 3; expected the path of an image file"),
        ({"image": ""}, 'line 3: `image` is ""; expected the path'),
        ({"image": "9.png"}, "/9.png; correct `image`"),
        ({"image": "none/9.png"}, "line 3: there is no image file "),
        ({"image": "sub"}, "line 3: there is no image file "),
        ({"image": "a\0b"}, "line 3: there is no image file "),
        ({"image": "0.png", "caption": "a", "captions": ["b"]}, "line 3 has `caption` and `captions`;"),
        ({"image": "0.png", "caption": 1}, "line 3: `caption` is 1; expected a string"),
        ({"image": "0.png", "captions": []}, "line 3: `captions` is []; expected a list of strings, not"),
        ({"image": "0.png"}, "line 3 has no caption while others do (1 of 3 have none); expected one"),
        (GOOD | {"label": 1}, "line 1 has no label while others do (2 of 3 have none)"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    content = line if isinstance(line, (str, bytes)) else json.dumps(line)
    content = content.encode() if isinstance(content, str) else content
    good = json.dumps(GOOD).encode()
    (folder / "data.jsonl").write_bytes(good + b"\n\n" + content + b"\n" + good + b"\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(folder))}/data\.jsonl ") as caught:
        JsonlImages(str(folder / "data.jsonl"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", 1], "line 2: `label` is 1; expected a class name, as on the first"),
        ([1, "a"], 'line 2: `label` is "a"; expected a whole number, as on the first'),
        ([1, True], "line 2: `label` is true; expected a whole number"),
        ([1.5, 1], "line 1: `label` is 1.5; expected a whole number or a class name"),
        (["", "a"], 'line 1: `label` is ""; expected a whole number or a class name'),
        ([0, -1], "a label is -1; expected classes numbered from 0"),
        ([0, 10**30], "a label is 100000000000... (31 digits); expected classes"),
    ],
)
def test_bad_labels(folder, labels, message):
    with pytest.raises(UserError, match=re.escape(message)):
        write(folder, *({"image": "0.png", "label": label} for label in labels))


def test_files_that_are_none(folder):
    with pytest.raises(UserError, match=r"data\.path .*nowhere\.jsonl is not a file; expected a \.jsonl"):
        JsonlImages(str(folder / "nowhere.jsonl"))
    with pytest.raises(UserError, match=r"data\.jsonl has no lines; expected one such as"):
        write(folder, "", "  ")


def test_images_that_are_damaged_or_gone_are_named(folder):
    source = write(folder, {"image": "0.png"}, {"image": "sub/2.png"})
    (folder / "0.png").write_bytes(b"not an image")
    (folder / "sub" / "2.png").unlink()
    for index, name in enumerate(("0.png", "sub/2.png")):
        with pytest.raises(UnreadableImage, match=rf"^{name}: "):
            source.read(index)


def test_fingerprint_tells_of_lines_and_images_not_of_the_place(folder, tmp_path_factory):
    lines = [{"image": "0.png", "caption": "a"}, {"image": "sub/2.png", "caption": "b"}]
    before = write(folder, *lines).fingerprint()
    moved = folder.rename(tmp_path_factory.mktemp("other") / "moved")
    assert JsonlImages(str(moved / "data.jsonl")).fingerprint() == before
    assert write(moved, lines[0], lines[1] | {"caption": "c"}).fingerprint() != before
    Image.new("RGB", (300, 200)).save(moved / "0.png")
    assert write(moved, *lines).fingerprint() != before


@given(lines=st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line)), ends=st.booleans())
def test_lines_by_place_are_those_of_the_file(tmp_path_factory, lines, ends):
    file = tmp_path_factory.mktemp("lines") / "x"
    file.write_bytes(b"\n".join(lines) + (b"\n" if ends and lines else b""))
    read = LineFile(file)
    expected = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    assert [(read.number(index), read[index].rstrip(b"\n")) for index in range(len(read))] == expected
    assert list(read) == [read[index] for index in range(len(read))]
