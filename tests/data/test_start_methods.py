"""Worker processes that do not begin as copies of the main one: Python 3.14 starts them so."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import tarfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.codec.encoded import Batches
from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.data.loader import Loader
from causalfusion.evaluate.samples.images import SourceImages, _BatchDataset

SIDE, COUNT = 8, 6


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), (index * 40, 10, 200))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """COUNT images of two classes in every form that is read."""
    root = tmp_path_factory.mktemp("data")
    lines = []
    with tarfile.open(root / "shard.tar", "w") as tar:
        for index in range(COUNT):
            folder = root / "photos" / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(index).save(folder / f"{index}.png")
            lines.append(json.dumps({"image": f"photos/{'ab'[index % 2]}/{index}.png", "label": index % 2}))
            content = io.BytesIO()
            picture(index).save(content, "png")
            for name, data in ((f"{index}.png", content.getvalue()), (f"{index}.cls", b"%d" % (index % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (root / "list.jsonl").write_text("\n".join(lines))
    arrays = np.stack([np.asarray(picture(index)) for index in range(COUNT)])
    np.savez(root / "images.npz", images=arrays, labels=np.arange(COUNT) % 2)
    return {
        "digits": "",
        "shapes": "",
        "folder": str(root / "photos"),
        "webdataset": str(root / "shard.tar"),
        "jsonl": str(root / "list.jsonl"),
        "npz": str(root / "images.npz"),
    }


@pytest.mark.parametrize("kind", ["digits", "shapes", "folder", "webdataset", "jsonl", "npz"])
def test_sources_and_readers_travel_to_a_new_process(kind, paths):
    config = DataConfig(source=kind, path=paths[kind], num_workers=1)
    source = open_source(config)
    source.read(0)  # with files open, if the source keeps them open
    loader = Loader(source, config, seed=0, batch_size=2)
    readers = [
        source,
        loader.reader,
        Batches(source, config, [np.arange(2)]),
        _BatchDataset(SourceImages(source), [np.arange(2)]),
    ]
    arrived, reader, encoding, evaluating = pickle.loads(pickle.dumps(readers))
    for index in range(min(len(source), COUNT)):
        assert np.array_equal(arrived.read(index).image, source.read(index).image)
        assert arrived.read(index).label == source.read(index).label
    assert len(reader.source) == len(source)
    assert np.array_equal(encoding[0][0].pixels, readers[2][0][0].pixels)  # pyright: ignore[reportIndexIssue]
    assert np.array_equal(evaluating[0][0].pixels, readers[3][0][0].pixels)  # pyright: ignore[reportIndexIssue]


@pytest.fixture
def forkserver() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("forkserver")
def test_the_stream_of_a_fork_server_is_the_same(paths):
    streams = []
    for num_workers in (0, 1):
        config = DataConfig(source="webdataset", path=paths["webdataset"], num_workers=num_workers)
        batches = Loader(open_source(config), config, seed=3, batch_size=4, flip=True).iterate(8)
        streams.append([next(batches) for _ in range(3)])
    for here, there in zip(*streams, strict=True):
        assert torch.equal(here.images, there.images) and torch.equal(here.labels, there.labels)
