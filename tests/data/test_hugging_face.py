"""Hugging Face `datasets` as a source: on disk, by a name of the hub, and streamed."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import guess_source, open_source
from causalfusion.data.columns import Columns
from causalfusion.data.hugging_face import _Streamed
from causalfusion.data.loader import Loader
from causalfusion.errors import UserError

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is not installed (the extra `data`)"
)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2]
NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"


def table():
    import datasets  # pyright: ignore[reportMissingImports]

    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "text": datasets.Value("string"),
            "id": datasets.Value("int64"),
        }
    )
    columns = {
        "img": [Image.fromarray(pixels) for pixels in PIXELS],
        "label": LABELS,
        "text": [f"picture {n}" for n in range(12)],
        "id": list(range(12)),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def require_rows(source, order=range(12)) -> None:
    assert len(source) == 12 and source.class_names == NAMES and source.has_captions
    for index, row in enumerate(order):
        example = source.read(index)
        assert (example.image == PIXELS[row]).all()
        assert (example.label, example.captions) == (LABELS[row], (f"picture {row}",))
        assert source.image_size(index) == (8, 8)


def test_a_stream_whose_labels_a_stop_left_out_is_read_anew(caches: Path):
    """Between its two files; the labels and captions of all images were lost for good."""

    class Stream:
        def __init__(self):
            self.features = {"img": None, "label": SimpleNamespace(names=NAMES), "text": None}

        def __iter__(self):
            yield from ({"img": b"%d" % n, "label": LABELS[n], "text": f"picture {n}"} for n in range(12))

    columns = Columns("img", "label", "text")
    for _ in range(2):
        found = _Streamed(Stream(), columns, "user/set", "train")
        assert found.values("label") == LABELS and found.values("text")[3] == "picture 3"
        assert found.content(11) == b"11"
        (lines,) = (caches / "causalfusion" / "datasets").glob("*.jsonl")
        lines.unlink()


@needs_datasets
@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_folder_saved_to_disk_with_and_without_splits(tmp_path: Path):
    import datasets  # pyright: ignore[reportMissingImports]

    order = np.random.default_rng(1).permutation(12)
    table().select(order).save_to_disk(tmp_path / "one")
    assert guess_source(str(tmp_path / "one")) == "datasets"
    source = open_source(DataConfig(source="datasets", path=str(tmp_path / "one")))
    require_rows(source, order.tolist())
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() and again.content_hash(2) == source.content_hash(2)
    assert source.content_hash(2) != source.content_hash(3)

    parts = {"train": table(), "valid": table().select(range(5))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert guess_source(str(tmp_path / "two")) == "datasets"
    config = DataConfig(source="datasets", path=str(tmp_path / "two"), split="validation")
    assert len(open_source(config)) == 5
    with pytest.raises(UserError, match=r"data\.split is test, which .*two has not; it has train, valid"):
        open_source(DataConfig(source="datasets", path=str(tmp_path / "two"), split="test"))
    with pytest.raises(UserError, match=r"on this disk already, .* leave data\.streaming out"):
        open_source(DataConfig(source="datasets", path=str(tmp_path / "two"), streaming=True))


@needs_datasets
@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_stream_is_read_once_and_resumes_at_the_exact_place(tmp_path: Path, caches: Path, monkeypatch):
    """What a folder that `datasets` loads gives streamed is what it gives mapped, in the same order of
    training, from any place on; the second time, the stream is not touched."""
    folder = tmp_path / "set"
    folder.mkdir()
    table().to_parquet(folder / "train-0.parquet")
    mapped = DataConfig(source="datasets", path=str(folder), holdout=0)
    streamed = DataConfig(source="datasets", path=str(folder), holdout=0, streaming=True)
    sources = [open_source(mapped), open_source(streamed)]
    for source in sources:
        require_rows(source)
    assert sum(path.suffix == ".images" for path in caches.rglob("*")) == 1

    monkeypatch.setattr("causalfusion.data.hugging_face._unrolled", None)
    sources[1] = open_source(streamed)
    require_rows(sources[1])
    loaders = [
        Loader(source, config, batch_size=4, indices=np.arange(12), seed=3)
        for source, config in zip(sources, (mapped, streamed), strict=True)
    ]
    whole, resumed = (loader.iterate(seen) for loader, seen in zip(loaders, (0, 20), strict=True))
    batches = [next(whole) for _ in range(8)]
    for batch in batches[5:]:
        other = next(resumed)
        assert (batch.images == other.images).all() and (batch.labels == other.labels).all()


@needs_datasets
def test_columns_by_name_and_names_of_the_hub(tmp_path: Path, monkeypatch):
    """A name of the hub, its revision and its configuration reach `datasets` as they are given."""
    import datasets  # pyright: ignore[reportMissingImports]

    asked = []

    def splits(*names, **options):
        asked.append((names, options))
        return ["train", "test"]

    def load(*names, **options):
        asked.append((names, options))
        return table()

    monkeypatch.setattr(datasets, "get_dataset_split_names", splits)
    monkeypatch.setattr(datasets, "load_dataset", load)
    config = DataConfig(
        source="datasets", path="user/set@v2", subset="small", split="test", label_column="id",
        caption_column="text",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="left out: 1 x column label"):
        source = open_source(config)
    assert source.class_names == [str(n) for n in range(12)]
    assert asked[0] == (("user/set", "small"), {"revision": "v2"})
    assert asked[1] == (("user/set", "small"), {"split": "test", "revision": "v2", "streaming": False})
    with pytest.raises(UserError, match=r"data\.image_column is 'nope'.*expected one of img, label, text"):
        open_source(DataConfig(source="datasets", path="user/set", image_column="nope"))

    def missing(*names, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'user/set' doesn't exist on the Hub\nmore")

    monkeypatch.setattr(datasets, "get_dataset_split_names", missing)
    with pytest.raises(UserError, match=r"cannot load user/set \(Dataset 'user/set' doesn't exist on the H"):
        open_source(DataConfig(source="datasets", path="user/set"))
    with pytest.raises(UserError, match="is no folder and no data set's name; expected user/name"):
        open_source(DataConfig(source="datasets", path="nowhere"))


@needs_datasets
def test_damage_is_told(tmp_path: Path):
    table().save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="it is damaged: copy it again"):
        open_source(DataConfig(source="datasets", path=str(tmp_path / "one")))


def test_the_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets, which is not installed; .*causalfusion\[data\]"):
        open_source(DataConfig(source="datasets", path="user/set"))
