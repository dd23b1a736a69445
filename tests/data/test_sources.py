"""Digits, folders and arrays: what is read, in which order, under which class; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.cli import run
from causalfusion.config import DataConfig
from causalfusion.data import ImageSource, open_source
from causalfusion.data.folder import ImageFolder, require_elsewhere
from causalfusion.data.npz import NpzImages
from causalfusion.errors import UserError


def save_image(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def labels_and_values(source: ImageSource) -> list[tuple[int | None, int]]:
    examples = [source.read(index) for index in range(len(source))]
    return [(example.label, int(example.image[0, 0, 0])) for example in examples]


def test_digits_are_the_pictures_of_scikit_learn_over_the_whole_range():
    from sklearn.datasets import load_digits

    source = open_source(DataConfig(source="digits"))
    pixels, labels = load_digits(return_X_y=True)
    assert len(source) == 1797 and source.class_names == list("0123456789")
    assert [source.read(index).label for index in range(1797)] == labels.tolist()
    for index in (0, 900, 1796):
        image = source.read(index).image
        assert image.shape == (8, 8, 1) and image.dtype == np.uint8
        assert np.abs(image.ravel() / 255 - pixels[index] / 16).max() <= 0.5 / 255 + 1e-12
    assert max(source.read(index).image.max() for index in range(50)) == 255


def test_folder_labels_are_the_class_folders_in_order(tmp_path):
    save_image(tmp_path / "dog" / "b.png", 3)
    save_image(tmp_path / "dog" / "a.PNG", 2)
    save_image(tmp_path / "cat" / "deep" / "down" / "z.bmp", 1)
    save_image(tmp_path / "cat" / "y.jpeg", 0)
    save_image(tmp_path / ".thumbnails" / "t.png", 9)
    save_image(tmp_path / "dog" / "._a.png", 9)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    source = open_source(DataConfig(source="folder", path=str(tmp_path)))
    assert source.class_names == ["cat", "dog"]
    assert labels_and_values(source) == [(0, 1), (0, 0), (1, 2), (1, 3)]
    assert source.fingerprint() == ImageFolder(str(tmp_path)).fingerprint()
    before = source.fingerprint()
    save_image(tmp_path / "dog" / "c.png", 4)
    assert ImageFolder(str(tmp_path)).fingerprint() != before


def test_folder_without_class_folders_has_no_labels(tmp_path):
    for value in (1, 0):
        save_image(tmp_path / f"{value}.png", value)
    source = ImageFolder(str(tmp_path))
    assert source.class_names == [] and labels_and_values(source) == [(None, 0), (None, 1)]


def test_folder_says_what_it_leaves_out(tmp_path):
    save_image(tmp_path / "a" / "0.png")
    save_image(tmp_path / "preview.png")
    with pytest.warns(UserWarning, match=r"left out: 1 x image beside the class folders"):
        assert len(ImageFolder(str(tmp_path))) == 1


def test_folder_says_where_captions_are_read_from_beside_a_table(tmp_path):
    save_image(tmp_path / "a" / "0.png")
    (tmp_path / "metadata.csv").touch()
    with pytest.warns(UserWarning, match=r"left out: 1 x \.csv \(captions are read from \.txt files beside"):
        assert not ImageFolder(str(tmp_path)).has_captions


def test_folder_of_splits_is_none_of_classes(tmp_path):
    for split in ("Train", "val"):
        save_image(tmp_path / split / "cat" / "0.png")
    with pytest.raises(UserError, match=r"holds the splits Train, val; give one: .*/Train$"):
        ImageFolder(str(tmp_path))
    save_image(tmp_path / "bus" / "0.png")  # a class train is a class like others
    assert ImageFolder(str(tmp_path)).class_names == ["Train", "bus", "val"]


@pytest.mark.parametrize("command", ["train --config digits", "encode", "codec train"])
@pytest.mark.parametrize("out", [".", "runs/photos"])
def test_what_is_written_does_not_lie_among_the_images(tmp_path, monkeypatch, capsys, command, out):
    """The folder was read as a class without images, and removed again before anybody could see it."""
    for name in ("a/0.png", "b/1.png"):
        save_image(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path / "photos")
    line = [*command.split(), "--data.source", "folder", "--data.path", ".", "--out", out]
    assert run(line) == 2
    said = f"--out {out} lies in the data, .; give a folder elsewhere, such as --out ../runs/photos"
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b"]


def test_what_is_written_may_lie_beside_the_images_or_be_hidden(tmp_path):
    data = DataConfig(source="folder", path=str(tmp_path / "photos"))
    for out in (tmp_path / "photos-run", tmp_path / "photos" / ".runs" / "one", tmp_path):
        require_elsewhere(out, data)


def test_folder_refusals(tmp_path):
    with pytest.raises(UserError, match=r"data\.path .*nowhere is not a folder; expected a folder of class"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no images in .*; expected files ending in \.jpg"):
        ImageFolder(str(tmp_path))
    save_image(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"class folder .*b has no images in it; fill it or remove it"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_under_our_names_and_under_those_of_adm(tmp_path, names, save):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    path = str(tmp_path / "images.npz")
    save(path, **dict(zip(names, (images, np.array([2, 0, 1, 2, 4])), strict=True)))
    source = open_source(DataConfig(source="npz", path=path))
    assert len(source) == 5 and source.class_names == ["0", "1", "2", "4"]
    assert [source.read(index).label for index in range(5)] == [2, 0, 1, 2, 3]
    assert all(np.array_equal(source.read(index).image, images[index]) for index in range(5))


def test_arrays_may_be_grey_and_without_labels(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "grey.npz", images)
    source = NpzImages(str(tmp_path / "grey.npz"))
    assert source.class_names == [] and source.read(1).label is None
    assert np.array_equal(source.read(1).image, images[1][..., None])


_GOOD = np.zeros((3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"pictures": _GOOD}, "holds no array `images` or `arr_0`"),
        ({"images": _GOOD.astype(np.float32)}, r"images are float32 of shape \(3, 4, 4, 3\); expected uint8"),
        ({"images": _GOOD.transpose(0, 3, 1, 2)}, r"images are uint8 of shape \(3, 3, 4, 4\); expected"),
        ({"images": _GOOD[:0]}, r"images are uint8 of shape \(0, 4, 4, 3\)"),
        (
            {"images": _GOOD, "labels": np.zeros(2, int)},
            r"labels are int64 of shape \(2,\); expected 3 whole",
        ),
        ({"images": _GOOD, "labels": np.zeros(3)}, r"labels are float64 of shape \(3,\); expected 3 whole"),
        (
            {"images": _GOOD, "labels": np.array([0, -1, 2])},
            "a label is -1; expected classes numbered from 0",
        ),
        ({"images": _GOOD, "labels": np.array([0, 10**9, 2])}, "a label is 1000000000; expected classes"),
        ({"images": np.array([{"no": "pickles"}])}, r"cannot be read as \.npz"),
    ],
)
def test_array_refusals(tmp_path, arrays, match):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=match):
        NpzImages(str(tmp_path / "x.npz"))


def test_damaged_array_files_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match="is not a file"):
        NpzImages(str(path))
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8))
    content = path.read_bytes()
    flipped = content[:300] + bytes(byte ^ 255 for byte in content[300:400]) + content[400:]
    for damaged in (b"", content[:100], content[:-30], flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read as \.npz .* damaged, cut short or no \.npz"):
            NpzImages(str(path))
    with open(path, "wb") as stream:
        np.save(stream, _GOOD)
    with pytest.raises(UserError, match=r"is a single array, not an \.npz file"):
        NpzImages(str(path))
