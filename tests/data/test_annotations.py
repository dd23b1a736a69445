"""Labels and captions read without decoding an image, of every kind of source and through wrappers."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.autoencode.evaluate import _Part
from causalfusion.config import DataConfig
from causalfusion.config.recipes import load_config
from causalfusion.data import Example, ImageSource, UnreadableImage, open_source
from causalfusion.data.class_captions import SIZED_OR_TRACED, ClassCaptions
from causalfusion.data.sizes import SizedSource
from causalfusion.data.source import AnnotatedSource, TracedSource, captions_of, label_of
from causalfusion.train.from_data import tokenizer_of
from causalfusion.train.prior import Mixed, OwnImages

WORDS = ("a red boat", "two green cars", "one blue hat", "a red hat")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(stream, "png")
    return stream.getvalue()


def folder_of(path: Path) -> DataConfig:
    for number, words in enumerate(WORDS):
        place = path / "photos" / ("even" if number % 2 == 0 else "odd")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(number))
        (place / f"{number}.txt").write_text(f"{words}\n{words} again\n")
    return DataConfig(source="folder", path=str(path / "photos"))


def shards_of(path: Path) -> DataConfig:
    with tarfile.open(path / "0.tar", "w") as tar:
        for number, words in enumerate(WORDS):
            record = json.dumps({"captions": [words, "from json"]}) if number == 3 else ""
            members = {"png": png(number), "cls": str(number % 2).encode(), "txt": words.encode()}
            for suffix, content in (members | ({"json": record.encode()} if record else {})).items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return DataConfig(source="webdataset", path=str(path / "0.tar"))


def lines_of(path: Path) -> DataConfig:
    lines = []
    for number, words in enumerate(WORDS):
        (path / f"{number}.png").write_bytes(png(number))
        lines.append(json.dumps({"image": f"{number}.png", "caption": words, "label": f"c{number % 2}"}))
    (path / "all.jsonl").write_text("\n".join(lines))
    return DataConfig(source="jsonl", path=str(path / "all.jsonl"))


def rows_of(path: Path) -> DataConfig:
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    columns = {"image": [png(number) for number in range(4)], "label": [0, 1, 0, 1], "text": list(WORDS)}
    parquet.write_table(pyarrow.table(columns), path / "0.parquet")
    return DataConfig(source="parquet", path=str(path / "0.parquet"))


def arrays_of(path: Path) -> DataConfig:
    np.savez(path / "all.npz", images=np.zeros((4, 4, 4, 3), np.uint8), labels=np.array([0, 1, 0, 1]))
    return DataConfig(source="npz", path=str(path / "all.npz"))


KINDS = {"folder": folder_of, "webdataset": shards_of, "jsonl": lines_of, "parquet": rows_of}
KINDS |= {"npz": arrays_of, "digits": lambda _: DataConfig(source="digits")}
KINDS |= {"shapes": lambda _: DataConfig(source="shapes")}


@pytest.fixture
def undecoded(monkeypatch):
    """No image is decoded from here on."""

    def start() -> None:
        def decode(*_: object) -> np.ndarray:
            raise AssertionError("an image is decoded")

        for module in ("folder", "webdataset", "jsonl", "table_images"):
            monkeypatch.setattr(f"causalfusion.data.{module}.decode_image", decode)
        monkeypatch.setattr("causalfusion.data.shapes.draw_scene", decode)

    return start


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_and_captions_are_those_of_the_whole_example(kind, tmp_path, monkeypatch, undecoded):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_source(KINDS[kind](tmp_path))
    worded = ClassCaptions(source)
    part = _Part(worded, np.array([3, 1]), "part")
    wrapped: list[ImageSource] = [source, worded, part, Mixed(source, OwnImages(tmp_path, 0, []))]
    whole = [[each.read(index) for index in range(min(len(each), 4))] for each in wrapped]
    undecoded()
    for each, examples in zip(wrapped, whole, strict=True):
        assert isinstance(each, AnnotatedSource)
        for index, example in enumerate(examples):
            assert label_of(each, index) == example.label
            assert captions_of(each, index) == example.captions
    assert captions_of(worded, 1) == (worded.words[whole[0][1].label or 0],), "not the source's own"
    if source.has_captions:
        assert len(set(captions_of(source, index) for index in range(4))) == 4


@pytest.mark.parametrize("kind", ["folder", "webdataset", "jsonl", "parquet", "shapes"])
def test_a_tokenizer_is_trained_on_captions_alone(kind, tmp_path, monkeypatch, undecoded):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_source(KINDS[kind](tmp_path))
    undecoded()
    config = load_config(text={"tokenizer": "train", "vocab_size": 300}, data={"source": "shapes"})
    tokenizer = tokenizer_of(config, source, np.arange(4))
    assert tokenizer.decode(tokenizer.encode(captions_of(source, 0)[0])).strip() == captions_of(source, 0)[0]


def test_a_source_that_cannot_tell_is_read():
    @dataclass
    class Plain:
        name: str = "plain"
        has_captions: bool = True

        def __post_init__(self) -> None:
            self.class_names = ["a", "b"]

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> Example:
            return Example(np.zeros((1, 1, 3), np.uint8), 1, ("read",))

        def fingerprint(self) -> str:
            return ""

    assert captions_of(Plain(), 0) == ("read",) and label_of(Plain(), 0) == 1
    assert captions_of(ClassCaptions(Plain()), 0) == ("b",)


def test_class_names_as_captions_can_do_what_their_source_can_for_every_python(tmp_path):
    worded = ClassCaptions(open_source(folder_of(tmp_path)))
    for protocol, methods in ((SizedSource, ["image_size"]), (TracedSource, SIZED_OR_TRACED[1:])):
        assert isinstance(worded, protocol)
        for name in methods:  # as isinstance looks from Python 3.12 on
            assert inspect.getattr_static(worded, name)
    again = pickle.loads(pickle.dumps(worded))
    assert again.content_hash(0) == worded.content_hash(0) and again.captions(1) == worded.captions(1)


def test_damaged_captions_are_said_to_be(tmp_path):
    config = folder_of(tmp_path)
    (tmp_path / "photos" / "even" / "0.txt").write_text("\n")
    with pytest.raises(UnreadableImage, match="the caption file is blank"):
        captions_of(open_source(config), 0)
