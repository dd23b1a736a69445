"""Documents in JSONL files: what is read, and the line that each mistake gets."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import guess_source, open_documents, open_source
from causalfusion.data.documents_file import JsonlDocuments
from causalfusion.data.picture import UnreadableImage
from causalfusion.data.source import TracedSource
from causalfusion.errors import UserError


def picture(folder: Path, name: str, value: int) -> np.ndarray:
    pixels = np.full((4, 5, 3), value, np.uint8)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return pixels


def write(file: Path, *documents: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"elements": d}) + "\n" for d in documents), encoding="utf-8")
    return file


def test_elements_keep_their_order_wherever_the_images_lie(tmp_path):
    """Files by relative and absolute path, members of a tar, and several files of a folder."""
    one, two, three = (picture(tmp_path, f"a/{n}.png", n) for n in (10, 20, 30))
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        tar.add(tmp_path / "a/30.png", "./deep/30.png")
    (tmp_path / "a/30.png").unlink()
    write(tmp_path / "d1.jsonl", [{"text": "x"}, {"image": "a/10.png"}, {"text": "y z"}, {"text": "w"}])
    write(tmp_path / "d2.jsonl", [{"image": "more.tar/deep/30.png"}, {"image": str(tmp_path / "a/20.png")}])
    (tmp_path / "d2.jsonl").write_text("\n" + (tmp_path / "d2.jsonl").read_text())
    source = JsonlDocuments(str(tmp_path))
    assert len(source) == 2 and [source.images_of(i) for i in (0, 1)] == [1, 2]
    first, second = source.read(0).elements, source.read(1, epoch=3).elements
    assert [e if isinstance(e, str) else e.tolist() for e in first] == ["x", one.tolist(), "y z", "w"]
    assert [e.tolist() for e in second] == [three.tolist(), two.tolist()]
    assert source.texts(0) == ("x", "y z", "w") and source.texts(1) == ()
    assert source.image_name(1).endswith("d2.jsonl line 2")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("{", "line 2 is not valid JSON (Expecting property name enclosed in double quotes, column "),
        ("[1]", "line 2 is a JSON list; expected {"),
        ("{}", "line 2: has no `elements`; expected a list of texts and images"),
        ('{"elements": "x"}', 'line 2: `elements` is "x"; expected a list'),
        ('{"elements": []}', "line 2: the document is empty; expected texts and images"),
        (
            '{"elements": [{"text": "x"}], "id": 3}',
            'line 2 has the unknown key "id"; expected `elements` alone',
        ),
        ('{"elements": ["x"]}', 'line 2: element 1 is "x"; expected {"text": "..."} or {"image": '),
        ('{"elements": [{"text": "x"}, {"audio": "y"}]}', 'element 2 is {"audio": "y"}; expected {"text"'),
        ('{"elements": [{"text": "x", "image": "1.png"}]}', 'element 1 is {"text": "x", "image": "1.png"}; '),
        ('{"elements": [{"text": " "}]}', 'line 2: element 1: `text` is " "; expected words'),
        ('{"elements": [{"text": 3}]}', "line 2: element 1: `text` is 3; expected words"),
        ('{"elements": [{"text": "\\ud800"}]}', "line 2: element 1: `text` is not valid Unicode"),
        ('{"elements": [{"image": null}]}', "element 1: `image` is null; expected the path of an image file"),
        ('{"elements": [{"image": "no.png"}]}', "line 2: there is no image file "),
        ('{"elements": [{"image": "s.tar/no.png"}]}', "line 2: there is no member no.png in "),
    ],
)
def test_each_mistake_gets_its_line(line, answer, tmp_path):
    picture(tmp_path, "1.png", 3)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "1.png", "1.png")
    file = write(tmp_path / "d.jsonl", [{"image": "1.png"}])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError) as raised:
        JsonlDocuments(str(file))
    said = str(raised.value)
    assert answer in said and str(file) in said and "\n" not in said


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [("none.jsonl", None, "is neither a file nor a folder"), ("empty.jsonl", "\n", "has no lines; expected")],
)
def test_a_file_that_is_missing_or_empty(name, content, answer, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=answer):
        JsonlDocuments(str(tmp_path / name))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"has no \.jsonl file"):
        JsonlDocuments(str(tmp_path / "folder"))


def test_a_damaged_image_is_named_and_a_change_is_noticed(tmp_path):
    picture(tmp_path, "1.png", 3)
    source = JsonlDocuments(str(write(tmp_path / "d.jsonl", [{"text": "x"}, {"image": "1.png"}])))
    assert isinstance(source, TracedSource)
    before = source.fingerprint(), source.content_hash(0)
    picture(tmp_path, "1.png", 4)
    assert source.fingerprint() != before[0] and source.content_hash(0) != before[1]
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"d\.jsonl line 1: 1\.png: it is damaged, or not an image"):
        source.read(0)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UnreadableImage, match=r"d\.jsonl line 1: "):
        source.read(0)


def test_the_kind_of_a_jsonl_file_follows_from_its_first_line(tmp_path):
    picture(tmp_path, "1.png", 3)
    documents = write(tmp_path / "d.jsonl", [{"image": "1.png"}])
    (tmp_path / "i.jsonl").write_text('{"image": "1.png"}\n')
    assert guess_source(str(documents)) == "documents"
    assert guess_source(str(tmp_path / "i.jsonl")) == "jsonl"
    config = DataConfig(source="documents", path=str(documents))
    assert len(open_documents(config)) == 1
    with pytest.raises(UserError, match="expected a source of images, as only train takes documents"):
        open_source(config)


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ({"flip": True}, "data.flip is True; expected off, for documents"),
        ({"image_size": "native"}, "data.image_size is 'native'; expected one size, for documents"),
        ({"cache": "folder"}, "data.cache is 'folder'; expected none, for documents"),
        ({"path": ""}, "expected a path, for source documents"),
    ],
)
def test_settings_that_documents_cannot_have(wrong, answer):
    with pytest.raises(UserError, match=answer):
        DataConfig(**{"source": "documents", "path": "d.jsonl", **wrong})
