"""Sample sets: parts that come whole, in any order and size, and images by any name."""

import json

import numpy as np
import pytest
from PIL import Image

from causalfusion.errors import UserError
from causalfusion.evaluate.samples.images import ArrayImages, SourceImages
from causalfusion.evaluate.samples.open_images import data_config, open_images
from causalfusion.evaluate.samples.sample_set import (
    SampleSet,
    check_same_identity,
    missing_ranges,
    open_for_writing,
    parts_of,
    write_part,
)

IDENTITY = {"seed": 0, "sample": {"num_ar_steps": 1, "diffusion_steps": [25]}}
FACTS = {"image_shape": [4, 4, 1], "class_names": ["a", "b"]}


def pixels_of(indices: range) -> np.ndarray:
    """Images that tell their index."""
    return np.stack([np.full((4, 4, 1), index, np.uint8) for index in indices])


def fill(folder, *ranges: range, count: int = 20) -> None:
    open_for_writing(folder, IDENTITY, FACTS, count)
    for indices in ranges:
        write_part(folder, indices, pixels_of(indices), np.arange(indices.start, indices.stop) % 2, 1.0)


def indices_of(images, **shares) -> list[int]:
    found = []
    for batch in images.batches(3, **shares):
        assert (batch.pixels[:, 0, 0, 0] == batch.indices).all() and (batch.labels == batch.indices % 2).all()
        found += batch.indices.tolist()
    return found


def test_what_is_missing(tmp_path):
    assert missing_ranges(tmp_path / "none", 5) == [range(5)]
    fill(tmp_path, range(4, 8), range(10, 12))
    assert missing_ranges(tmp_path, 20) == [range(4), range(8, 10), range(12, 20)]
    assert missing_ranges(tmp_path, 9) == [range(4), range(8, 9)]
    fill(tmp_path, range(6))
    assert missing_ranges(tmp_path, 8) == []


def test_reading_goes_through_every_image_once_whatever_the_parts(tmp_path):
    """Overlapping parts of two batch sizes, and shares of three processes."""
    fill(tmp_path, range(6), range(4, 8), range(8, 15), range(16, 20))
    whole = SampleSet(tmp_path)
    assert len(whole) == 15, "up to the gap"
    assert indices_of(whole) == list(range(15))
    shares = [indices_of(whole, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(15))
    assert indices_of(SampleSet(tmp_path, 5)) == list(range(5))
    assert whole.seconds() == 3 and SampleSet(tmp_path, 5).seconds() == 2
    with pytest.raises(UserError, match="15 of 16 samples without a gap"):
        SampleSet(tmp_path, 16)


def test_other_settings_are_refused_by_the_first_difference(tmp_path):
    fill(tmp_path, range(4))
    other = {"seed": 0, "sample": {"num_ar_steps": 1, "diffusion_steps": [50]}}
    with pytest.raises(UserError, match=r"sample.diffusion_steps \[25\], and \[50\] is asked for"):
        open_for_writing(tmp_path, other, FACTS, 4)
    with pytest.raises(UserError, match="candidates nothing, and 2 is asked for"):
        check_same_identity(IDENTITY, {**IDENTITY, "candidates": 2}, tmp_path)
    later = {**IDENTITY["sample"], "solver_order": 2}
    check_same_identity(IDENTITY, {**IDENTITY, "sample": later}, tmp_path)
    with pytest.raises(UserError, match=r"sample.solver_order 2, and 3 is asked for"):
        check_same_identity(IDENTITY, {**IDENTITY, "sample": {**later, "solver_order": 3}}, tmp_path)
    fill(tmp_path, count=50)
    assert json.loads((tmp_path / "settings.json").read_text())["images"] == 50, "it may grow"
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "photo.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds other things than samples"):
        open_for_writing(tmp_path / "file", IDENTITY, FACTS, 4)


def test_a_damaged_part_is_named(tmp_path):
    fill(tmp_path, range(4), range(4, 8))
    _, _, path = parts_of(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"part-0000004-0000008.npz cannot be read .* remove it and run"):
        indices_of(SampleSet(tmp_path))
    np.savez(path, images=np.zeros((4, 5, 5, 1), np.uint8), seconds=0)
    with pytest.raises(UserError, match=r"holds uint8 of shape \(4, 5, 5, 1\)"):
        indices_of(SampleSet(tmp_path))


def test_a_set_that_is_none(tmp_path):
    with pytest.raises(UserError, match="is not a sample set"):
        SampleSet(tmp_path)
    open_for_writing(tmp_path, IDENTITY, FACTS, 4)
    with pytest.raises(UserError, match="holds no samples yet"):
        SampleSet(tmp_path)
    (tmp_path / "settings.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="is not of a sample set"):
        SampleSet(tmp_path)


def test_names_of_images(tmp_path):
    (tmp_path / "images.npz").write_bytes(b"")
    (tmp_path / "list.jsonl").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").touch()
    expected = {
        "digits": "digits", "shapes": "shapes", str(tmp_path / "photos"): "folder", "a/*.tar": "webdataset",
        "x-{000..003}.tar.gz": "webdataset", str(tmp_path / "images.npz"): "npz",
        str(tmp_path / "list.jsonl"): "jsonl",
    }  # fmt: skip
    assert {name: data_config(name).source for name in expected} == expected
    assert data_config("shapes:test").split == "test"
    for name, message in (
        ("shapes:tst", "no split 'tst'"),
        ("/nope", "/nope does not exist; expected digits"),
    ):
        with pytest.raises(UserError, match=message):
            data_config(name)


def test_adm_files(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=np.repeat(pixels_of(range(6)), 3, axis=3), arr_1=np.arange(6) % 2)
    images = open_images(str(path))
    assert images.shape == (4, 4, 3) and indices_of(images) == list(range(6))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot be read as .npz .* cut short"):
        open_images(str(path))
    np.savez(path, arr_0=np.zeros((6, 4, 4, 3), np.float32))
    with pytest.raises(UserError, match=r"images are float32 .* expected uint8"):
        open_images(str(path))


def test_a_folder_of_images(tmp_path):
    for index, side in enumerate((8, 8, 12)):
        Image.fromarray(np.full((side, side, 3), index * 10, np.uint8)).save(tmp_path / f"{index}.png")
    with pytest.raises(
        UserError, match=r"image 2 of .* is 12x12 with 3 channels, others are 8x8 .* --image-size"
    ):
        list(open_images(str(tmp_path)).batches(8))
    (batch,) = open_images(str(tmp_path), image_size=4).batches(8)
    assert batch.pixels.shape == (3, 4, 4, 3) and batch.labels is None
    assert (batch.pixels[:, 1, 1, 0] == [0, 10, 20]).all()
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png"):
        list(open_images(str(tmp_path), image_size=4).batches(8))


def test_a_subset_is_drawn_once_and_for_all():
    source = open_images("digits", count=100)
    assert isinstance(source, SourceImages) and len(source) == 100
    first, second = ([b.pixels for b in open_images("digits", count=100).batches(64)] for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    labels = np.concatenate([b.labels for b in source.batches(64) if b.labels is not None])
    assert len(set(labels.tolist())) == 10, "of all of them, not the first ones"
    assert source.fingerprint() != open_images("digits", count=99).fingerprint()
    assert open_images("digits", channels=3).shape == (8, 8, 3)
    with pytest.raises(UserError, match="digits holds 1797 images, and 1798 are asked for"):
        open_images("digits", count=1798)


def test_images_that_are_read_by_workers_are_the_same():
    alone, shared = (
        np.concatenate([b.pixels for b in open_images("digits", count=50, num_workers=n).batches(8)])
        for n in (0, 2)
    )
    assert (alone == shared).all()


def test_arrays_of_the_wrong_range():
    with pytest.raises(UserError, match=r"float64 of shape \(2, 4, 4, 3\); expected uint8 0..255"):
        ArrayImages(np.zeros((2, 4, 4, 3)))
    with pytest.raises(UserError, match=r"\(3,\) labels for 2"):
        ArrayImages(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3))
