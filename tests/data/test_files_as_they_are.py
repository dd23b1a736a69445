"""Data as people have them: what is used, what is left out and said, what is refused in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.config import DataConfig, ModelConfig, RunConfig
from causalfusion.data import open_source
from causalfusion.data.folder import ImageFolder
from causalfusion.data.jsonl import JsonlImages
from causalfusion.data.labels import fit_classes
from causalfusion.data.loader import Loader
from causalfusion.data.names import find_path
from causalfusion.data.npz import NpzImages
from causalfusion.data.shards import as_plain_tar
from causalfusion.data.webdataset import WebDataset
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data

CAFE = unicodedata.normalize("NFC", "café")
CAFE_ON_MAC = unicodedata.normalize("NFD", "café")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "causalfusion" / "shards"


def picture(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value,) * 3).save(stream, kind)
    return stream.getvalue()


def save(path: Path, value: int = 0, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(value, kind))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def opened(make) -> tuple:
    """(source, its warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = make()
    return source, [str(each.message) for each in caught]


def values(source) -> list[int]:
    return [int(source.read(index).image[0, 0, 0]) for index in range(len(source))]


# Folders


def test_links_and_other_formats_are_used_hidden_folders_are_not(tmp_path):
    root = tmp_path / "photos"
    save(root / "cat" / "0.png", 1)
    save(root / "cat" / "1.gif", 2, "GIF")
    save(root / "cat" / "2.TIFF", 3, "TIFF")
    save(tmp_path / "elsewhere" / "3.png", 4)
    os.symlink(tmp_path / "elsewhere", root / "cat" / "more")
    os.symlink(root / "cat", root / "cat" / "loop")
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails"):
        save(root / "cat" / hidden / "x.png", 9)
        save(root / hidden / "x.png", 9)
    (root / "cat" / "Thumbs.db").touch()
    (root / "cat" / "notes.md").touch()
    os.mkfifo(root / "cat" / "pipe.png")
    source, (said,) = opened(lambda: ImageFolder(str(root)))
    assert source.class_names == ["cat"] and sorted(values(source)) == [1, 2, 3, 4]
    for kind in (
        "2 x hidden folder (@eaDir)", "2 x hidden folder (__MACOSX)", "1 x hidden file", "1 x .md",
        "1 x broken link, pipe or device", "1 x link to a folder that is read already",
    ):  # fmt: skip
        assert kind in said, kind


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path):
    save(tmp_path / "a" / "0.png", 5)
    os.rename(tmp_path / "a" / "0.png", os.fsencode(tmp_path / "a") + b"/caf\xe9.png")
    source = ImageFolder(str(tmp_path))
    assert values(source) == [5] and source.image_name(0) == "a/caf\\xe9.png"
    assert len(source.fingerprint()) == 16 and len(source.content_hash(0)) == 16
    (tmp_path / "a" / os.listdir(tmp_path / "a")[0]).write_bytes(b"damaged")
    with pytest.raises(Exception, match=r"^a/caf\\xe9\.png: it is damaged"):
        source.read(0)


def test_one_spelling_of_accents_is_as_good_as_the_other(tmp_path):
    save(tmp_path / "photos" / CAFE_ON_MAC / f"{CAFE_ON_MAC}.png", 7)
    (tmp_path / "photos" / CAFE_ON_MAC / f"{CAFE}.txt").write_text("a cup")
    source = ImageFolder(str(tmp_path / "photos"))
    assert source.class_names == [CAFE] and source.read(0).captions == ("a cup",)
    path = f"photos/{CAFE}/{CAFE}.png"
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": path, "label": CAFE_ON_MAC}) + "\n")
    listed = JsonlImages(str(tmp_path / "list.jsonl"))
    assert values(listed) == [7] and listed.class_names == [CAFE]
    assert find_path(str(tmp_path / path)) == str(tmp_path / "photos" / CAFE_ON_MAC / f"{CAFE_ON_MAC}.png")
    save(tmp_path / "photos" / CAFE / "1.png", 8)
    with pytest.raises(UserError, match="2 class folders of one name"):
        ImageFolder(str(tmp_path / "photos"))


@pytest.mark.parametrize("bad", [b"\n", b"\xff\xfe"])
def test_a_blank_caption_is_replaced_like_an_unreadable_image(tmp_path, bad):
    for number in range(20):
        save(tmp_path / f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_bytes(bad if number == 7 else b"a caption")
    loader = Loader(ImageFolder(str(tmp_path)), DataConfig(), seed=0, batch_size=20)
    with pytest.warns(UserWarning, match=r"skipped .*: 7\.txt: the caption file is (blank|not UTF-8)"):
        batch = next(loader.iterate(0))
    assert set(batch.image_indices.tolist()) < set(range(20)) and len(loader.health.bad) == 1


# Shards


def test_of_two_images_of_a_key_one_is_used_and_it_is_said(tmp_path):
    members = [
        (f"{n}.{end}", picture(value, kind))
        for n in range(3)
        for end, value, kind in (("jpg", 200, "JPEG"), ("png", 0, "PNG"))
    ]
    path = str(write_tar(tmp_path / "pair.tar", members))
    source, (said,) = opened(lambda: WebDataset(path))
    assert [value > 150 for value in values(source)] == [True] * 3
    assert "left out: 3 x .png beside a .jpg of the same key (data.image_suffix says which" in said
    masks, said = opened(lambda: open_source(DataConfig(source="webdataset", path=path, image_suffix="png")))
    assert values(masks) == [0] * 3 and masks.fingerprint() != source.fingerprint()


def test_dotted_keys_and_other_endings_are_used_or_counted(tmp_path):
    members = [
        *((f"ok{n}.jpg", picture(10, "JPEG")) for n in range(4)),
        *((f"./photo.v{n}.jpg", picture(10, "JPEG")) for n in range(4)),
        ("./photo.cls", b"1"),
        *((f"ok{n}.cls", b"0") for n in range(4)),
        *((f"b{n}.bmp", picture(10, "BMP")) for n in range(4)),
        *((f"b{n}.cls", b"0") for n in range(4)),
        ("ok0.seg.png", picture(99)),
        ("ok0.npy", b"1"),
        ("__MACOSX/._ok0.jpg", b"1"),
        ("lonely.cls", b"0"),
    ]
    source, (said,) = opened(lambda: WebDataset(str(write_tar(tmp_path / "dots.tar", members))))
    labels = [source.read(index).label for index in range(12)]
    assert len(source) == 12 and labels == [0] * 8 + [1] * 4
    for kind in ("1 x .seg.png", "1 x .npy", "1 x hidden file", "1 x key without an image"):
        assert kind in said


def test_labels_are_read_from_json_numbers_or_names(tmp_path):
    def shard(name: str, labels: list) -> WebDataset:
        members = []
        for n, (field, label) in enumerate(labels):
            members += [(f"{n}.png", picture(n)), (f"{n}.json", json.dumps({field: label}).encode())]
        return WebDataset(str(write_tar(tmp_path / name, members)))

    numbers = shard("n.tar", [("label", 0), ("cls", 1), ("class", 0)])
    assert [numbers.read(n).label for n in range(3)] == [0, 1, 0] and numbers.class_names == ["0", "1"]
    names = shard("w.tar", [("label", "dog"), ("label", "ant")])
    assert [names.read(n).label for n in range(2)] == [1, 0] and names.class_names == ["ant", "dog"]
    with pytest.raises(
        UserError, match=r"the label of x\.tar:0\.png is a number, others are names, such as a"
    ):
        shard("x.tar", [("label", 0), ("label", "a")])
    assert shard("o.tar", [("label", [1, 2]), ("label", {})]).class_names == []


def test_list_of_classes_with_a_mark_or_in_another_encoding(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", picture(0)), ("0.cls", b"0"), ("1.png", b""), ("1.cls", b"1")])
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert WebDataset(str(tmp_path)).class_names == ["cat", "dog"]
    (tmp_path / "classes.txt").write_bytes("café\ndog\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes\.txt is not UTF-8 \(byte 3 is 0xe9\); save it as UTF-8"):
        WebDataset(str(tmp_path))


def member(name: str, size: bytes) -> bytes:
    """A tar's header with this size field, and a checksum that is right."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (b"\xff" * 10 + b"\xfe\x00", "is said to have -512 bytes"),
        (b"\x80" + b"\xff" * 11, "is said to have 3e"),
        (b"77777777777\0", "damaged or cut short"),
        (b"99999999999\0", "damaged or cut short"),
    ],
)
def test_members_that_lie_about_their_size_are_refused_at_once(tmp_path, size, message):
    whole = write_tar(tmp_path / "s.tar", [("0.png", picture(0))]).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:1024] + member("zz.png", size) + whole[1024:])
    begin = time.monotonic()
    with pytest.raises(UserError, match=message):
        WebDataset(str(tmp_path / "s.tar"))
    assert time.monotonic() - begin < 1


def test_sparse_members_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("big.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15}
        info.size = 512
        tar.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
    with pytest.raises(UserError, match="stored as a sparse file"):
        WebDataset(str(tmp_path / "s.tar"))


def test_a_label_of_60_digits_is_one_line(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("0.png", picture(0)), ("0.cls", b"9" * 60)])
    with pytest.raises(UserError, match=r"a label is 999999999999\.\.\. \(60 digits\); expected classes"):
        WebDataset(str(path))


def test_shards_that_are_no_tar(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.png", picture(0))
    for path in (tmp_path, tmp_path / "a.zip"):
        with pytest.raises(
            UserError, match=r"a\.zip is not supported: it is no tar; unpack it into a folder"
        ):
            WebDataset(str(path))
    (tmp_path / "b.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(
        UserError, match=r"b\.tar\.zst is not supported without .*; pip install zstandard, or"
    ):
        WebDataset(str(tmp_path / "b.tar.zst"))


def test_shards_packed_with_other_programs_are_read(tmp_path):
    import bz2
    import lzma

    plain = write_tar(tmp_path / "plain", [("0.png", picture(3)), ("1.png", picture(4))]).read_bytes()
    (tmp_path / "a.tar.bz2").write_bytes(bz2.compress(plain))
    (tmp_path / "b.tar.xz").write_bytes(lzma.compress(plain))
    assert values(WebDataset(str(tmp_path))) == [3, 4, 3, 4]
    (tmp_path / "a.tar.bz2").write_bytes(bz2.compress(plain)[:-40])
    with pytest.raises(UserError, match=r"a\.tar\.bz2 cannot be unpacked .*damaged"):
        WebDataset(str(tmp_path))


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("causalfusion.data.shards._SMALL", 2**21)
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(bytes(2**23)))
    with pytest.raises(UserError, match=r"s\.tar\.gz has 8,\d\d\d bytes and unpacks to more than 3,145,728;"):
        as_plain_tar(tmp_path / "s.tar.gz")
    assert list(cache.iterdir()) == []


def test_a_killed_unpacking_leaves_nothing_for_good(tmp_path, cache):
    cache.mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    from causalfusion.files import temporary_name

    left = temporary_name(cache / "x.tar")
    left = left.with_name(left.name.replace(f".{os.getpid()}.", f".{gone.pid}."))
    left.write_bytes(b"half")
    write_tar(tmp_path / "plain", [("0.png", picture(3))])
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    plain = as_plain_tar(tmp_path / "s.tar.gz")
    assert list(cache.iterdir()) == [plain]


# Labels


def test_classes_are_those_that_the_data_have(tmp_path):
    lines = []
    for number, label in enumerate((388, 207, 388)):
        save(tmp_path / f"{number}.png", number)
        lines.append(json.dumps({"image": f"{number}.png", "label": label}))
    (tmp_path / "sparse.jsonl").write_text("\n".join(lines))
    source, (said,) = opened(lambda: JsonlImages(str(tmp_path / "sparse.jsonl")))
    assert source.class_names == ["207", "388"] and [source.read(n).label for n in range(3)] == [1, 0, 1]
    assert "2 of the labels 0 to 388 occur, and are the classes: 207, 388" in said


@pytest.mark.filterwarnings("ignore:.*of the labels")
def test_a_run_begun_with_all_numbers_as_classes_goes_on_so(tmp_path):
    images = np.zeros((8, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([3, 9] * 4))
    data = DataConfig(source="npz", path=str(tmp_path / "x.npz"), holdout=0.0)

    def opened(num_classes: int):
        model = ModelConfig(num_classes=num_classes)
        return open_training_data(RunConfig(data=data, model=model), World(0, 1, torch.device("cpu")))

    found = opened(0)
    assert found.class_names == ["3", "9"] and found.config.model.num_classes == 2
    old = opened(10)
    assert old.class_names == [str(n) for n in range(10)] and old.config.model.num_classes == 10
    (batch,) = old.evaluation_batches(8)
    assert batch.labels.tolist() == [3, 9] * 4
    (batch,) = opened(1).evaluation_batches(8)
    assert batch.labels.tolist() == [0] * 8
    for refused in (5, 9):
        with pytest.raises(UserError, match=rf"model.num_classes is {refused}, the data make it 2"):
            opened(refused)
    assert fit_classes(None, ["a", "b"], 0) == (["a", "b"], None)


# Arrays


def rewritten(path: Path, shape: str, size: int | None = None) -> None:
    """An .npz whose header declares this shape; and this size in the archive's listing."""
    stream = io.BytesIO()
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(100))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", stream.getvalue())
    if size is not None:
        content = path.read_bytes()
        at = content.index(b"PK\x01\x02")
        path.write_bytes(content[: at + 24] + struct.pack("<I", size) + content[at + 28 :])


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("(1000000, 1000, 1000, 3)", None),
        ("(10000000000000000000000, 1000000000000000)", None),
        ("(-1, 100)", None),
        ("(4000000000,)", 4_000_000_128),
    ],
)
def test_arrays_that_lie_about_their_size_are_refused(tmp_path, shape, size):
    rewritten(tmp_path / "x.npz", shape, size)
    with pytest.raises(UserError, match=r"x\.npz cannot be read as \.npz \(images (says|has) "):
        NpzImages(str(tmp_path / "x.npz"))


def test_compressed_arrays_are_bounded_and_plain_ones_are_not_read_into_memory(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "plain.npz", images=images)
    np.savez_compressed(tmp_path / "packed.npz", images=images, extra=np.zeros(3))
    plain = NpzImages(str(tmp_path / "plain.npz"))
    assert isinstance(plain._images, np.memmap) and np.array_equal(plain.read(5).image, images[5])
    monkeypatch.setattr("causalfusion.machine.runtime.available_memory", lambda: 1000)
    NpzImages(str(tmp_path / "plain.npz"))
    with (
        pytest.warns(UserWarning, match="left out: 1 x array extra"),
        pytest.raises(UserError, match=r"unpacks to 1,280 bytes, 1,000 of memory are free; save it uncompr"),
    ):
        NpzImages(str(tmp_path / "packed.npz"))
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((100, 64, 64, 3), np.uint8))
    monkeypatch.setattr("causalfusion.data.npz_file._SMALL", 2**20)
    with pytest.raises(UserError, match="would unpack to"):
        NpzImages(str(tmp_path / "bomb.npz"))


def test_workers_are_bounded():
    with pytest.raises(UserError, match=r"data\.num_workers is 100000; expected 0 to 512"):
        DataConfig(num_workers=100_000)


def test_an_array_whose_header_is_no_python_is_refused(tmp_path):
    header = b"{'descr': '|u1', 'shape': (8, \n((("
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(UserError, match=r"x\.npz cannot be read as \.npz"):
        NpzImages(str(tmp_path / "x.npz"))


def compress_zst(data: bytes) -> bytes:
    """As `zstd` packs it; skips where neither Python 3.14 nor the extra is there."""
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]
    except ImportError:
        zstd = pytest.importorskip("zstandard", reason="needs the extra: pip install 'causalfusion[zstd]'")
    return zstd.compress(data)


def test_shards_packed_with_zstd_are_read_and_damaged_ones_refused(tmp_path):
    members = [(f"{n}.png", picture(n)) for n in range(30)]
    packed = compress_zst(write_tar(tmp_path / "plain", members).read_bytes())
    (tmp_path / "a.tar.zst").write_bytes(packed)
    assert values(WebDataset(str(tmp_path / "a.tar.zst"))) == list(range(30))
    for length in (0, 3, len(packed) // 2, len(packed) - 1):
        (tmp_path / f"{length}.tar.zst").write_bytes(packed[:length])
        with pytest.raises(UserError, match=rf"{length}\.tar\.zst .*(damaged|no images)"):
            WebDataset(str(tmp_path / f"{length}.tar.zst"))
    (tmp_path / "b.tar.zst").write_bytes(b"\0" * 20 + packed[20:])
    with pytest.raises(UserError, match=r"b\.tar\.zst cannot be unpacked .*; it is damaged"):
        WebDataset(str(tmp_path / "b.tar.zst"))
