"""Which kind of data a path is."""

import os

import numpy as np
import pytest
from PIL import Image

from causalfusion.data.guess import combine_paths, guess_source
from causalfusion.data.webdataset import find_shards
from causalfusion.errors import UserError, printable


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_the_kind_follows_from_the_path(tmp_path):
    save(tmp_path / "loose" / "1.png")
    save(tmp_path / "classes" / "cat" / "deep" / "1.JPEG")
    (tmp_path / "shards").mkdir()
    for name in ("a.tar", "b.tar", "c.tar.gz"):
        (tmp_path / "shards" / name).touch()
    (tmp_path / "x.jsonl").touch()
    np.savez(tmp_path / "x.npz", images=np.zeros((1, 2, 2, 3), np.uint8))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").touch()
    (tmp_path / "cache" / "labels.npy").touch()
    for path, kind in {
        "loose": "folder", "classes": "folder", "shards": "webdataset", "shards/a.tar": "webdataset",
        "shards/*.tar": "webdataset", "shards/{a,b}.tar": "webdataset", "x.jsonl": "jsonl", "x.npz": "npz",
        "cache": "cache",
    }.items():  # fmt: skip
        assert guess_source(str(tmp_path / path)) == kind
        assert guess_source([str(tmp_path / path)]) == kind


def test_shards_that_a_shell_expanded_are_one_path(tmp_path):
    paths = []
    for name in ("one [1].tar", "two.tar", "three.tar.gz"):
        (tmp_path / name).touch()
        paths.append(str(tmp_path / name))
    assert guess_source(paths) == "webdataset"
    assert find_shards(combine_paths(paths)) == sorted(tmp_path / path for path in paths)
    assert combine_paths(paths[:1]) == paths[0]
    with pytest.raises(UserError, match=r"photo\.png is no shard; expected one path"):
        guess_source([*paths, "photo.png"])


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (lambda root: None, "nowhere", "does not exist; expected a folder of images"),
        (lambda root: None, "no/*.png", r"matches no file; expected"),
        (lambda root: save(root / "1.png"), "1.png", "is one image; expected"),
        (lambda root: (root / "a.csv").touch(), "a.csv", "can be read; .* a .jsonl list"),
        (lambda root: ((root / "f").mkdir(), (root / "f" / "1.npy").touch()), "f", "but 1 x .npy; "),
        (lambda root: save(root / "f" / ".ipynb_checkpoints" / "1.png"), "f", "holds no images"),
        (lambda root: (save(root / "f" / "1.png"), (root / "f" / "a.tar").touch()), "f", "--data.source"),
        (lambda root: ((root / "f").mkdir(), (root / "f" / "all.jsonl").touch()), "f", "give .*f/all.jsonl"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_is_expected(tmp_path, make, path, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        guess_source(str(tmp_path / path))


def test_a_folder_that_links_to_itself_is_looked_at_once(tmp_path):
    os.symlink(tmp_path, tmp_path / "again")
    with pytest.raises(UserError, match="holds no images"):
        guess_source(str(tmp_path))


def test_messages_carry_no_control_characters():
    assert printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert printable("\u202egnp.exe") == "\\u202egnp.exe"
    assert printable("café Жук 👨\u200d👩") == "café Жук 👨\u200d👩"


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip"])
def test_every_archive_that_is_read_or_refused_by_name_is_known_as_shards(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"any")
    assert guess_source(str(tmp_path / f"a{ending}")) == "webdataset"
    assert guess_source(str(tmp_path)) == "webdataset"
