"""A cache knows its data: copies are accepted, changed data refused with what changed; one writer only."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.codec.cache import check_cache, open_cache
from causalfusion.codec.contents import fingerprint_like
from causalfusion.codec.encode import encode_to_cache
from causalfusion.codec.encoded import Batches
from causalfusion.codec.manifest import FORMAT, OLD_FORMAT
from causalfusion.config import CodecConfig, DataConfig, RunConfig
from causalfusion.data import open_source
from causalfusion.errors import UserError
from causalfusion.files import in_use


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 20, 200)).save(stream, "PNG")
    return stream.getvalue()


def photos(root: Path, values: list[int]) -> DataConfig:
    for number, value in enumerate(values):
        place = root / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(value))
        place.with_suffix(".txt").write_text(f"value {value}")
    return DataConfig(source="folder", path=str(root))


def shard(path: Path, values: list[int], labels: list[int]) -> DataConfig:
    with tarfile.open(path, "w") as tar:
        for number, (value, label) in enumerate(zip(values, labels, strict=True)):
            for name, content in ((f"{number}.png", picture(value)), (f"{number}.cls", b"%d" % label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return DataConfig(source="webdataset", path=str(path))


def encode(data: DataConfig, out: Path):
    return encode_to_cache(RunConfig(data=data), out, device="cpu")


def test_copied_data_are_accepted_after_one_look_at_their_contents(tmp_path, capsys):
    data = photos(tmp_path / "photos", [1, 2, 3, 4])
    cache = encode(data, tmp_path / "out")
    assert cache.manifest["format"] == FORMAT
    moved = replace(data, path=str(tmp_path / "moved"))
    shutil.copytree(tmp_path / "photos", tmp_path / "moved")
    for file in (tmp_path / "moved").rglob("*.png"):
        os.utime(file, ns=(1, 1))
    capsys.readouterr()
    check_cache(cache, CodecConfig(), moved)
    assert "4/4 images" in capsys.readouterr().err
    check_cache(cache, CodecConfig(), moved)
    assert capsys.readouterr().err == ""  # remembered
    encode(moved, tmp_path / "out")


@pytest.mark.parametrize("change", ["pixels", "caption"])
def test_changed_data_are_refused_with_what_changed(tmp_path, change):
    data = photos(tmp_path / "photos", [1, 2, 3, 4])
    cache = encode(data, tmp_path / "out")
    file = tmp_path / "photos" / "b" / ("1.png" if change == "pixels" else "1.txt")
    content = picture(7) if change == "pixels" else b"value 7"
    assert len(content) == file.stat().st_size
    file.write_bytes(content)
    for attempt in (
        lambda: check_cache(cache, CodecConfig(), data),
        lambda: encode(data, tmp_path / "out"),
    ):
        with pytest.raises(
            UserError, match=r"1 of 4 images of .*photos are not those .* the first b/1\.png;"
        ):
            attempt()
    file.unlink()
    if change == "pixels":
        (tmp_path / "photos" / "b" / "1.txt").unlink()
        with pytest.raises(UserError, match=r"was made of 4 images, .*photos has 3"):
            encode(data, tmp_path / "out")


def test_a_shard_rebuilt_at_the_same_size_is_not_taken_for_the_old_one(tmp_path):
    path = tmp_path / "s.tar"
    cache = encode(shard(path, [1, 2, 3, 4], [0, 0, 1, 1]), tmp_path / "out")
    size, before = path.stat().st_size, path.stat().st_mtime_ns
    data = shard(path, [9, 8, 7, 6], [1, 0, 1, 0])
    assert path.stat().st_size == size
    os.utime(path, ns=(before, before + 1))
    with pytest.raises(UserError, match=r"4 of 4 images .* the first s\.tar:0\.png;"):
        encode(data, tmp_path / "out")
    with pytest.raises(UserError, match="4 of 4 images"):
        check_cache(cache, CodecConfig(), data)


def test_caches_of_the_earlier_format_keep_opening(tmp_path):
    data = photos(tmp_path / "photos", [1, 2, 3, 4])
    encode(data, tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["class_numbers"], manifest["files"]["contents.npy"]
    manifest |= {"format": OLD_FORMAT, "source": fingerprint_like(OLD_FORMAT, open_source(data))}
    file.write_text(json.dumps(manifest))
    cache = open_cache(str(tmp_path / "out"))
    for each in (tmp_path / "photos").rglob("*.png"):
        os.utime(each, ns=(1, 1))
    check_cache(cache, CodecConfig(), data)
    assert encode(data, tmp_path / "out").labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "photos" / "a" / "0.png").write_bytes(picture(1) + b"longer")
    with pytest.raises(UserError, match=r"data\.path \(hash of the data\)"):
        check_cache(cache, CodecConfig(), data)


def test_a_second_encode_into_the_folder_is_refused(tmp_path):
    data = photos(tmp_path / "photos", [1, 2, 3])
    with (
        in_use(tmp_path / "out", "the cache"),
        pytest.raises(UserError, match=rf"the cache .*out is in use by process {os.getpid()}; wait for it"),
    ):
        encode(data, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*of the labels")
def test_numbers_of_the_classes_are_kept(tmp_path):
    cache = encode(shard(tmp_path / "s.tar", [1, 2, 3], [388, 207, 388]), tmp_path / "out")
    assert cache.class_names == ["207", "388"] and cache.labels.tolist() == [1, 0, 1]
    assert cache.classes is not None
    names, table = cache.classes.by_number(400) or ([], np.empty(0))
    assert len(names) == 400 and table.tolist() == [207, 388]


def test_workers_hand_over_arrays(tmp_path):
    data = photos(tmp_path / "photos", [1, 2, 3])
    found = Batches(open_source(data), data, [np.arange(3)])[0]
    # A tensor anywhere in it would cross in shared memory.
    assert b"torch" not in pickle.dumps(found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", -1), ("count", 5), ("count", "4"), ("statistics", {}), ("latent_shape", [3, 4]),
        ("shards", []), ("class_names", [1]), ("files", {"../x": 3}), ("dtype", "object"),
        ("class_names", []), ("data", {"source": "folder"}), ("data", {"split": 3}),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_one_line(tmp_path, key, value):
    encode(photos(tmp_path / "photos", [1, 2, 3, 4]), tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=r"^the cache .*(damaged|encode again)") as caught:
        open_cache(str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
