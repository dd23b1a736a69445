"""Tar shards: members to samples, packed and plain, patterns, damage; and the CIFAR-10 shards."""

from __future__ import annotations

import csv
import gzip
import io
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data import UnreadableImage, open_source
from causalfusion.data.tar import DamagedTar, list_members
from causalfusion.data.webdataset import WebDataset, find_shards
from causalfusion.errors import UserError

CIFAR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10"
needs_cifar = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"{CIFAR} is absent")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Unpacked shards go here, not into the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def image(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (value, value, value)).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT, **facts) -> Path:
    """`facts`: attributes of every member, such as a fractional mtime."""
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, count: int) -> dict[str, bytes]:
    """KEY.png and KEY.cls; image n has the value n and the class n % 3."""
    members = {}
    for n in range(first, first + count):
        members |= {f"{n:06d}.png": image(n), f"{n:06d}.cls": str(n % 3).encode()}
    return members


def values(source: WebDataset) -> list[int]:
    return [int(source.read(index).image[0, 0, 0]) for index in range(len(source))]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_shards_plain_and_packed(tmp_path, cache, suffix):
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard:03d}{suffix}", pairs(shard * 4, 4))
    for pattern in (f"{tmp_path}", f"{tmp_path}/train-*{suffix}", f"{tmp_path}/train-{{000..002}}{suffix}"):
        source = open_source(DataConfig(source="webdataset", path=pattern))
        assert isinstance(source, WebDataset)
        assert values(source) == list(range(12))
        assert [source.read(n).label for n in range(12)] == [n % 3 for n in range(12)]
        assert source.class_names == ["0", "1", "2"] and source.read(0).captions == ()
    unpacked = list((cache / "causalfusion" / "shards").glob("*")) if suffix != ".tar" else []
    assert len(unpacked) == (0 if suffix == ".tar" else 3)  # once each, and nothing unfinished


def test_members_are_joined_by_key(tmp_path):
    """Nested folders are part of the key, the first dot ends it; capitals in suffixes do not count, nor which
    member of a key comes first."""
    members = {
        "a/x.JPG": image(100, "JPEG"),
        "b/x.cls": b" 1\n",
        "b/x.jpeg": image(200, "JPEG"),
        "a/x.txt": "  a grey square é \n".encode(),
        "b/x.txt": b"first\n\nsecond\n",
        "b/x.json": b'{"url": "x", "caption": null}',
        "b.c/x.txt": b"not this",
        "b.c/x.json": '{"captions": ["その一", "\\u305d"], "label": 7}'.encode(),
        "a/x.cls": b"0",
        "b.c/x.webp": image(50, "WEBP"),
        "b.c/x.cls": b"2",
        "b.c/x.seg.png": image(9),
        "lonely.cls": b"7",
        "lonely.json": b"{",
    }
    source = WebDataset(str(write_tar(tmp_path / "s.tar", members)))
    found = [source.read(index) for index in range(len(source))]
    assert [(example.label, example.captions) for example in found] == [
        (0, ("a grey square é",)),
        (1, ("first", "second")),
        (2, ("その一", "そ")),
    ]
    assert [abs(int(e.image[0, 0, 0]) - v) < 3 for e, v in zip(found, (100, 200, 50), strict=True)] == [
        True
    ] * 3


def test_shards_without_labels(tmp_path):
    source = WebDataset(str(write_tar(tmp_path / "s.tar", {"0.png": image(1), "1.png": image(2)})))
    assert source.class_names == [] and source.read(1).label is None


def test_json_without_captions_is_no_caption(tmp_path):
    members = {"0.png": image(0), "0.json": b"[1, 2]", "1.png": image(1), "1.json": b'{"label": 3}'}
    source = WebDataset(str(write_tar(tmp_path / "s.tar", members)))
    assert not source.has_captions and source.read(0).captions == source.read(1).captions == ()


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"0.txt": b"a"}, r"s\.tar:1\.png has no caption \(.txt, or `caption` in .json\) .*\(2 of 3"),
        ({"0.txt": b"", "1.txt": b"b", "2.json": b'{"caption": "c"}'}, r"s\.tar:0\.png has no caption"),
        ({"0.txt": b"a", "1.txt": b"b", "2.json": b'{"caption": ""}'}, r"2\.png has no .* \(1 of 3 images"),
        ({"1.json": b'{"caption": 7}'}, r"the \.json of s\.tar:1\.png: `caption` is 7; expected a string"),
    ],
)
def test_caption_refusals(tmp_path, members, match):
    images = {f"{n}.png": image(n) for n in range(3)}
    with pytest.raises(UserError, match=match):
        WebDataset(str(write_tar(tmp_path / "s.tar", images | members)))


def test_caption_that_is_not_utf8_is_unreadable(tmp_path):
    source = WebDataset(str(write_tar(tmp_path / "s.tar", {"0.png": image(0), "0.txt": b"gr\xfcn"})))
    with pytest.raises(UnreadableImage, match=r"\.txt of s\.tar:0\.png: .* is not UTF-8 \(byte 2 is 0xfc\)"):
        source.read(0)


def test_classes_are_named_by_the_listing_beside_the_shards(tmp_path):
    write_tar(tmp_path / "s.tar", pairs(0, 4))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\n\n")
    assert WebDataset(str(tmp_path)).class_names == ["ant", "bee", "cat"]  # no image is a dog
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match=r"classes\.txt names 2 classes, the labels of .* go to 2"):
        WebDataset(str(tmp_path))


def test_patterns(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar.gz", "b-08.tar", "notes.txt"):
        write_tar(tmp_path / name, {})

    def found(pattern: str) -> list[str]:
        return [path.name for path in find_shards(f"{tmp_path}/{pattern}")]

    assert found("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert found("{a,b}-{08..08}.tar") == found("{a,b}-08.tar") == ["a-08.tar", "b-08.tar"]
    assert (
        found("{b,a}-*.tar")
        == found("*.tar")
        == found("")
        == ["a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar"]
    )
    assert found("b-08*") == ["b-08.tar"]  # lies there unpacked as well
    assert found("b-08.tar.gz") == ["b-08.tar.gz"]
    with pytest.raises(UserError, match=r"shard .*a-11\.tar does not exist; data\.path is .*\{10\.\.11\}"):
        found("a-{10..11}.tar")
    for nothing in ("c-*.tar", "c.tar", "a-{9..8}.tar"):
        with pytest.raises(UserError, match=r"no shards match data\.path"):
            found(nothing)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1.5])
def test_listing_equals_that_of_tarfile(tmp_path, format, mtime):
    names = ["a.png", "x" * 90 + "/" + "y" * 90 + ".png", "empty", "é.png"]
    if format != tarfile.USTAR_FORMAT:
        names.append("z" * 150 + "/" + "w" * 150)
    members = {name: b"c" * (n * 511) for n, name in enumerate(reversed(names))}
    path = write_tar(tmp_path / "s.tar", members, format, mtime=mtime)
    with tarfile.open(path, "a", format=format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("last"))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert [tuple(member) for member in list_members(path)] == expected and len(expected) == len(names) + 1


def test_tar_cut_anywhere_or_damaged_is_never_taken_for_a_shorter_one(tmp_path):
    content = write_tar(tmp_path / "s.tar", pairs(0, 3)).read_bytes()
    end = 2 * 512 * 6  # six members of a header and a block
    path = tmp_path / "cut.tar"
    for cut in (0, 100, 512, 700, 1024, 1025, 3 * 512, end - 300, end, end + 100):
        path.write_bytes(content[:cut])
        with pytest.raises(DamagedTar):
            list_members(path)
        with pytest.raises(UserError, match=r"shard .*cut\.tar cannot be read .* damaged or cut short"):
            WebDataset(str(path))
    path.write_bytes(content[:1024] + b"\xff" * 512 + content[1536:])
    with pytest.raises(DamagedTar):
        list_members(path)
    path.write_bytes(content[: end + 512])  # one block of the two at the end is enough
    assert len(list_members(path)) == 6


def test_packed_shard_that_is_damaged_leaves_nothing_behind(tmp_path, cache):
    whole = write_tar(tmp_path / "s.tar.gz", pairs(0, 30)).read_bytes()
    path = tmp_path / "t.tar.gz"
    for damaged in (
        b"",
        whole[:-20],
        whole[: len(whole) // 2],
        b"no gzip at all",
        whole[:200] + b"\0" * 90 + whole[290:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"shard .*t\.tar\.gz cannot be (unpacked|read) "):
            WebDataset(str(path))
    assert not [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size]


def test_cache_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar.gz", pairs(0, 2))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"cannot be unpacked into .* set XDG_CACHE_HOME to a folder with room"
    ):
        WebDataset(str(path))


def test_packed_shard_that_changed_is_unpacked_again(tmp_path):
    path = tmp_path / "s.tar.gz"
    assert values(WebDataset(str(write_tar(path, pairs(0, 2))))) == [0, 1]
    assert values(WebDataset(str(write_tar(path, pairs(5, 3))))) == [5, 6, 7]


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"a.txt": b"no"}, r"no images in the shards .* expected members such as 000000\.jpg, 000000\.cls"),
        ({"0.png": b"", "0.cls": b"1", "1.png": b""}, r"s\.tar:1\.png has no \.cls while others do"),
        ({"0.png": b"", "0.cls": b"cat"}, r"0\.cls holds 'cat'; expected a whole number"),
        ({"0.png": b"", "0.cls": b""}, r"0\.cls holds ''; expected a whole number"),
        ({"0.png": b"", "0.cls": b"-1"}, "a label is -1; expected classes numbered from 0"),
    ],
)
def test_refusals(tmp_path, members, match):
    with pytest.raises(UserError, match=match):
        WebDataset(str(write_tar(tmp_path / "s.tar", members)))


def test_damaged_images_and_shards_lost_meanwhile_are_named(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"0.png": image(1), "1.png": image(2)[:-30], "2.png": b""})
    source = WebDataset(str(path))
    assert source.read(0).image.shape == (3, 4, 3)
    for index in (1, 2):
        with pytest.raises(UnreadableImage, match=rf"s\.tar:{index}\.png: "):
            source.read(index)
    path.write_bytes(path.read_bytes()[:560])
    with pytest.raises(UnreadableImage, match=r"s\.tar:0\.png: the shard is cut short"):
        source.read(0)
    path.unlink()
    with pytest.raises(UnreadableImage, match=r"s\.tar:0\.png: .*No such file"):
        source.read(0)


def test_source_can_be_sent_to_another_process(tmp_path):
    source = WebDataset(str(write_tar(tmp_path / "s.tar", pairs(0, 3))))
    source.read(0)
    assert values(pickle.loads(pickle.dumps(source))) == [0, 1, 2]


@needs_cifar
def test_cifar10_is_read_whole_and_in_order(tmp_path):
    source = WebDataset(str(CIFAR / "cifar10-train-{000000..000009}.tar.gz"))
    assert len(source) == 50_000
    assert source.class_names == (CIFAR / "classes.txt").read_text().split()
    with gzip.open(CIFAR / "index.csv.gz", "rt") as stream:
        rows = [row for row in csv.DictReader(stream) if row["shard"].startswith("cifar10-train")]
    for index in [*range(40), 4_999, 5_000, 31_415, 49_999]:
        example = source.read(index)
        assert example.label == int(rows[index]["cls"]) and example.image.shape == (32, 32, 3)
        assert source.class_names[example.label] == rows[index]["source"].split("/")[1]
