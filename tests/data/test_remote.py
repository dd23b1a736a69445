"""Shards and arrays at URLs: fetched whole, once, again when they change, and never taken half."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import guess_source, open_source
from causalfusion.data.remote import fetched
from causalfusion.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def shard(rows: slice) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(6)[rows]:
            picture = io.BytesIO()
            Image.fromarray(PIXELS[number]).save(picture, "PNG")
            for name, content in (
                (f"{number}.png", picture.getvalue()),
                (f"{number}.cls", b"%d" % (number % 2)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=PIXELS)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe("/set/train-000.tar", shard(slice(0, 4)))
    system.pipe("/set/train-001.tar", shard(slice(4, 6)))
    system.pipe("/set/test-000.tar", shard(slice(0, 1)))
    system.pipe("/set/classes.txt", b"cat\ndog\n")
    system.pipe("/set/x.npz", arrays())
    yield system
    system.rm("/set", recursive=True)


@pytest.mark.parametrize("pattern", ["memory://set/train-*.tar", "memory://set/train-{000..001}.tar"])
def test_shards_in_memory(pattern, memory):
    assert guess_source(pattern) == "webdataset"
    source = open_source(DataConfig(source="webdataset", path=pattern))
    assert len(source) == 6 and source.class_names == ["cat", "dog"]
    assert all((source.read(n).image == PIXELS[n]).all() for n in range(6))


@pytest.mark.parametrize("pattern", ["memory://set/*/part.tar", "memory://set/{a,b}/part.tar"])
def test_files_of_the_same_name_in_several_folders_are_several(pattern, memory):
    """The second one's copy took the place of the first one's, whose images were left out."""
    for folder, rows in (("a", slice(0, 4)), ("b", slice(4, 6))):
        memory.pipe(f"/set/{folder}/part.tar", shard(rows))
        memory.pipe(f"/set/{folder}/classes.txt", b"cat\ndog\n")
    source = open_source(DataConfig(source="webdataset", path=pattern))
    assert len(source) == 6 and source.class_names == ["cat", "dog"]
    found = {source.read(n).image.tobytes() for n in range(6)}
    assert found == {pixels.tobytes() for pixels in PIXELS}


def test_a_file_is_fetched_once_and_again_when_it_changes(memory, monkeypatch):
    config = DataConfig(source="npz", path="memory://set/x.npz")
    assert guess_source(config.path) == "npz"
    first = open_source(config)
    assert (first.read(5).image == PIXELS[5]).all()
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "open", None)
        assert len(open_source(config)) == 6
    stream = io.BytesIO()
    np.savez(stream, images=PIXELS[:2])
    memory.pipe("/set/x.npz", stream.getvalue())
    assert len(open_source(config)) == 2
    assert (first.read(5).image == PIXELS[5]).all()  # what is open stays as it was

    def away(self, place):
        raise OSError("no route to host")

    monkeypatch.setattr(type(memory), "info", away)
    assert len(open_source(config)) == 2  # the copy


def test_a_file_that_breaks_off_is_not_taken(memory, cache: Path, monkeypatch):
    info = type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda self, place: {**info(self, place), "size": 10**6})
    with pytest.raises(UserError, match=r"x\.npz gave [\d,]+ of 1,000,000 bytes; run the same command"):
        fetched("memory://set/x.npz")
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("memory://set/nope.npz", "set/nope.npz does not exist; check data.path"),
        ("memory://set/nope-*.npz", "nope-.* matches no file"),
        ("nope://set/x.npz", "nope://set/x.npz cannot be opened .*nope"),
    ],
)
def test_what_is_not_there_is_told(url, answer, memory):
    with pytest.raises(UserError, match=answer):
        open_source(DataConfig(source="npz", path=url))
    with pytest.raises(UserError, match=r"not a kind of data that can be read from a URL; expected \.tar"):
        guess_source("https://host/pictures.zip7")


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="aiohttp is not installed")
def test_shards_and_arrays_of_a_local_server(tmp_path: Path):
    place = tmp_path / "served"
    place.mkdir()
    (place / "train-0.tar").write_bytes(shard(slice(0, 4)))
    (place / "train-1.tar").write_bytes(shard(slice(4, 6)))
    (place / "x.npz").write_bytes(arrays())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        source = open_source(DataConfig(source="webdataset", path=f"{root}/train-{{0..1}}.tar"))
        assert all((source.read(n).image == PIXELS[n]).all() for n in range(6))
        assert len(open_source(DataConfig(source="npz", path=f"{root}/x.npz"))) == 6
        with pytest.raises(UserError, match=r"nope\.npz does not exist"):
            fetched(f"{root}/nope.npz")
    finally:
        server.shutdown()
        server.server_close()
    assert len(open_source(DataConfig(source="npz", path=f"{root}/x.npz"))) == 6  # without the server
