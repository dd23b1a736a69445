"""Parquet files as the hub stores data sets: pictures, labels and captions by the names of columns."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import guess_source, open_source
from causalfusion.data.parquet import Columns, ParquetImages
from causalfusion.data.source import UnreadableImage
from causalfusion.errors import UserError

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None,
    reason="pyarrow is not installed (the extra `data`)",
)
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, rows: slice = slice(None), names: list[str] | None = None, **columns: list) -> Path:
    """A parquet file of these rows; `names` of classes as the hub's `datasets` writes them."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    images = [{"bytes": png(pixels), "path": f"{n}.png"} for n, pixels in enumerate(PIXELS)]
    table = pa.table({name: values[rows] for name, values in {"image": images, **columns}.items()})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_pyarrow
def test_images_labels_and_captions_of_several_files(tmp_path: Path):
    labels, captions = [2, 0, 1, 1, 0, 2, 2], [f"picture {n}" for n in range(7)]
    for number, rows in enumerate((slice(0, 4), slice(4, 7))):
        name = f"train-{number:05d}-of-00002.parquet"
        write(tmp_path / "data" / name, rows, ["cat", "dog", "owl"], label=labels, text=captions)
    for path in (tmp_path, tmp_path / "data", tmp_path / "data" / "train-*.parquet"):
        assert guess_source(str(path)) == "parquet"
        source = open_source(DataConfig(source="parquet", path=str(path)))
        assert len(source) == 7 and source.class_names == ["cat", "dog", "owl"] and source.has_captions
        for index in (6, 0, 4, 3):
            example = source.read(index)
            assert (example.image == PIXELS[index]).all()
            assert (example.label, example.captions) == (labels[index], (captions[index],))
    assert source.image_name(5).endswith("train-00001-of-00002.parquet row 1")
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() and again.content_hash(2) == source.content_hash(2)
    assert source.content_hash(2) != source.content_hash(3)


@needs_pyarrow
def test_columns_by_name(tmp_path: Path):
    several = [["a", "b"]] * 7
    file = write(tmp_path / "x.parquet", picture=[png(p) for p in PIXELS[::-1]], kind=["b", "a"] * 3 + ["a"],
                 told=several)  # fmt: skip
    with pytest.warns(UserWarning, match="column image"):
        source = ParquetImages(str(file), Columns("picture", "kind", "told"))
    assert (source.read(0).image == PIXELS[6]).all()
    assert source.class_names == ["a", "b"] and source.read(0).label == 1
    assert source.read(3).captions == ("a", "b")
    with pytest.raises(UserError, match=r"data\.label_column is 'nope'.*expected one of image, picture"):
        ParquetImages(str(file), Columns(label="nope"))
    with pytest.raises(UserError, match="the column told holds list"):
        ParquetImages(str(file), Columns("picture", "told"))


@needs_pyarrow
def test_pictures_are_unpacked_once(tmp_path: Path, cache: Path):
    file = write(tmp_path / "x.parquet")
    first = ParquetImages(str(file))
    unpacked = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert len(unpacked) == 2
    ParquetImages(str(file))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == unpacked
    assert not first.class_names and not first.has_captions


@needs_pyarrow
def test_what_is_wrong_is_told(tmp_path: Path):
    file = write(tmp_path / "bad.parquet", slice(0, 3), picture=[b"no picture", None, png(PIXELS[2])] * 3)
    with pytest.warns(UserWarning, match="column image"):
        source = ParquetImages(str(file), Columns("picture"))
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match=f"bad.parquet row {index}"):
            source.read(index)
    assert (source.read(2).image == PIXELS[2]).all()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="is not a whole parquet file"):
        ParquetImages(str(file))
    for name in ("train-0.parquet", "test-0.parquet"):
        write(tmp_path / "splits" / name)
    with pytest.raises(UserError, match=r"the splits test, train; give one: .*splits/train-\*\.parquet"):
        ParquetImages(str(tmp_path / "splits"))
    some = write(tmp_path / "some.parquet", label=[0, None] * 3 + [1])
    with pytest.raises(UserError, match="the column label holds NoneType, int"):
        ParquetImages(str(some))


def test_pyarrow_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow, which is not installed; .*causalfusion\[data\]"):
        ParquetImages(str(tmp_path / "x.parquet"))
