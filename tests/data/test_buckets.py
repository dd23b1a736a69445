"""Images of any size: the size that each gets, and the stream of batches of one grid."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causalfusion import cli
from causalfusion.config import DataConfig
from causalfusion.config.sizes import Fit, default_side, parse_size
from causalfusion.data import open_source
from causalfusion.data.buckets import Buckets
from causalfusion.data.loader import Loader
from causalfusion.data.shapes import Shapes
from causalfusion.data.sizes import grids_of
from causalfusion.data.transforms import fit_image
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.scenes import read_scene
from causalfusion.train.from_data import large_enough

SIDES = st.integers(1, 3000)


@given(height=SIDES, width=SIDES, cell=st.sampled_from([1, 2, 8, 16]), area=st.integers(256, 10**6))
def test_a_native_size_is_whole_tokens_within_the_area_and_the_picture(height, width, cell, area):
    size = Fit(max_area=area, cell=cell).size_of(height, width)
    if min(height, width) < cell:
        assert size is None
        return
    assert size is not None
    assert size[0] % cell == size[1] % cell == 0 and min(size) >= cell
    assert size[0] * size[1] <= area and size[0] <= height and size[1] <= width
    if height * width <= area:  # a small picture loses less than a token on each side
        assert height - size[0] < cell and width - size[1] < cell


@settings(max_examples=40)
@given(height=st.integers(16, 300), width=st.integers(16, 300))
def test_the_shape_is_kept_up_to_a_token(height, width):
    """What is cropped after scaling is less than one token on one side, and nothing on the other."""
    fit = Fit(max_area=64 * 64, cell=4)
    rows, columns = fit.size_of(height, width) or (0, 0)
    scale = max(rows / height, columns / width)
    assert scale <= 1
    left_over = (height * scale - rows, width * scale - columns)
    assert min(left_over) == pytest.approx(0, abs=1e-6) and max(left_over) < 8


def test_pixels_of_a_small_picture_are_its_own_and_a_large_one_is_scaled():
    image = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    kept = fit_image(image, Fit(max_area=1000, cell=4))
    assert kept is not None and np.array_equal(kept, image[0:20, 1:33])
    ramp = np.repeat(np.arange(0, 200, dtype=np.uint8)[None, :, None], 100, 0)
    scaled = fit_image(ramp, Fit(max_area=800, cell=4))  # 100x200 to 20x40
    assert scaled is not None and scaled.shape == (20, 40, 1)
    assert np.abs(scaled[0, :, 0] - (np.arange(40) * 5 + 2)).max() <= 2
    assert fit_image(image[:3], Fit(max_area=1000, cell=4)) is None


def test_sizes_in_words():
    assert parse_size("320x192", "--size") == (192, 320)
    assert parse_size("64", "--size") == (64, 64)
    for wrong in ("", "x", "0x4", "4x", "-4", "4x4x4", "70000", "native"):
        with pytest.raises(UserError, match=r"^--size is .*; expected WIDTHxHEIGHT in pixels"):
            parse_size(wrong, "--size")
    assert default_side(384, 4) == 16
    with pytest.raises(UserError, match=r"data.max_area is 255; expected at least 256, .* \(16x16\)"):
        default_side(255, 16)


def test_sizes_of_settings():
    assert DataConfig(image_size="24x16").fit() == Fit(16, 24)
    assert DataConfig(image_size="32").image_size == DataConfig(image_size="32x32").image_size == 32
    assert DataConfig(image_size="native", max_area=99).fit(4) == Fit(max_area=99, cell=4)
    with pytest.raises(UserError, match=r"data.image_size is .?wide.?; expected 0 to 65535 pixels, WIDTHx"):
        DataConfig(image_size="wide")


GRIDS = np.array([[4, 4]] * 50 + [[4, 6]] * 30 + [[6, 4]] * 7 + [[0, 0]] * 3 + [[1, 9]])
KEPT = np.flatnonzero(GRIDS[:, 0])


def make(seed: int = 3, batch_size: int = 8, flip: bool = False) -> Buckets:
    return Buckets(GRIDS, KEPT, batch_size=batch_size, seed=seed, flip=flip)


def test_every_batch_has_one_grid_and_every_image_its_turn():
    buckets, seen, epochs = make(), Counter[int](), 24
    for first in range(0, epochs * len(KEPT), 8):
        samples = buckets.samples(np.arange(first, first + 8))
        assert len(np.unique(GRIDS[samples.indices], axis=0)) == 1
        seen.update(samples.indices.tolist())
    assert set(seen) == set(KEPT.tolist())
    # A bucket is behind or ahead by less than a batch, and an epoch of it is its images once.
    assert all(abs(seen[index] - epochs) <= 1 for index in range(87))
    assert abs(seen[90] - epochs) <= 8, "the one image of its grid comes in batches of its own"


@pytest.mark.parametrize("step", [0, 1, 2, 5, 50, 1234])
def test_any_batch_is_found_without_those_before(step):
    """What makes a resumed run exact."""
    one_by_one, at_once = make(flip=True), make(flip=True)
    for number in range(max(step - 40, 0), step + 1):
        places = np.arange(number * 8, number * 8 + 8)
        walked = one_by_one.samples(places)
    for a, b in zip(walked, at_once.samples(places), strict=True):
        assert np.array_equal(a, b)
    assert one_by_one.of_batch(step) == at_once.of_batch(step)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 99))
def test_batches_of_a_bucket_are_numbered_without_gaps(counts, batch_size, seed):
    grids = np.repeat(np.array([[1, n + 1] for n in range(len(counts))]), counts, axis=0)
    buckets = Buckets(grids, np.arange(len(grids)), batch_size=batch_size, seed=seed, flip=False)
    found = [buckets.of_batch(step) for step in range(60)]
    for number in range(len(counts)):
        own = [batch for bucket, batch in found if bucket == number]
        assert own == list(range(len(own)))
    fresh = Buckets(grids, np.arange(len(grids)), batch_size=batch_size, seed=seed, flip=False)
    assert [fresh.of_batch(step) for step in (59, 17, 30)] == [found[step] for step in (59, 17, 30)]


def test_seeds_and_epochs_have_orders_of_their_own():
    def first(buckets: Buckets, batch: int) -> list[int]:
        steps = (s for s in range(10_000) if buckets.of_batch(s) == (1, batch))
        start = next(steps) * 8
        return buckets.samples(np.arange(start, start + 8)).indices.tolist()

    assert first(make(3), 0) != first(make(4), 0)
    assert first(make(3), 0) != first(make(3), 1)


def save(folder, sizes):
    for number, (height, width) in enumerate(sizes):
        pixels = np.full((height, width, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def test_loader_reads_batches_of_one_size_and_replaces_within_it(tmp_path):
    save(tmp_path, [(8, 8)] * 5 + [(8, 13)] * 5 + [(3, 9)])
    whole = (tmp_path / "07.png").read_bytes()
    (tmp_path / "07.png").write_bytes(whole[:45])  # its header is whole, its pixels are not
    config = DataConfig(source="folder", path=str(tmp_path), image_size="native", max_area=10_000)
    source, fit = open_source(config), config.fit(4)
    with pytest.warns(UserWarning, match="left out 1 of 11 images, which are smaller than one token of 4x4"):
        grids = grids_of(source, fit)
    assert grids.tolist() == [[2, 2]] * 5 + [[2, 3]] * 5 + [[0, 0]]
    buckets = Buckets(grids, np.arange(10), batch_size=4, seed=0, flip=False)
    loader = Loader(
        source, config, seed=0, batch_size=4, indices=np.arange(10), fit=fit, buckets=buckets
    ).iterate(0)
    shapes = set()
    with pytest.warns(UserWarning, match="skipped an image that cannot be read"):
        for _, batch in zip(range(12), loader, strict=False):
            shapes.add(tuple(batch.images.shape[2:]))
            wide = batch.images.shape[3] == 12
            assert ((batch.image_indices >= 5) == wide).all() and (batch.image_indices != 7).all()
    assert shapes == {(8, 8), (8, 12)}


def test_all_too_small_is_one_line(tmp_path):
    save(tmp_path, [(8, 8), (6, 9)])
    config = DataConfig(source="folder", path=str(tmp_path), image_size="native")
    with pytest.raises(UserError, match="all 2 images are smaller than one token of 16x16 pixels"):
        grids_of(open_source(config), config.fit(16))


def test_images_to_train_on_that_are_all_too_small_are_one_line():
    grids = np.array([[0, 0], [2, 3], [0, 0]])
    train, held_out = large_enough(grids, np.array([0, 1]), np.array([2]))
    assert train.tolist() == [1] and held_out.tolist() == []
    with pytest.raises(UserError, match=r"of the 2 images to train on, none can be used, .*, and 1 are held"):
        large_enough(grids, np.array([0, 2]), np.array([1]))


def test_sizes_are_those_of_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    source = open_source(DataConfig(source="folder", path=str(tmp_path)))
    assert source.image_size(0) == source.read(0).image.shape[:2] == (20, 10)


def test_scenes_of_any_size_are_scenes(tmp_path):
    """Figures keep their size in pixels on a longer canvas, and the oracle reads what the scene says."""
    config = DataConfig(source="shapes", image_size="native", max_area=1536)
    source, seen = open_source(config), Counter()
    for index in range(40):
        example, scene = source.read(index), source.scene(index)
        seen[example.image.shape[:2]] += 1
        found = read_scene(example.image)
        told = sorted((f.shape, f.color, round(f.x, 1), round(f.y, 1)) for f in scene.figures)
        assert len(found.figures) == len(told)
        for figure in scene.figures:
            near = min(found.figures, key=lambda f, a=figure: abs(f.x - a.x) + abs(f.y - a.y))
            assert (near.shape, near.color, near.size) == (figure.shape, figure.color, figure.size)
            assert abs(near.x - figure.x) < 0.02 and abs(near.radius - figure.radius) < 0.02
    assert set(seen) == {(32, 32), (32, 48), (48, 32)}


def test_captions_of_long_scenes_can_be_written():
    data = Shapes("test", fit=Fit(32, 96), num_objects=2)
    for index in range(200):
        assert data.captions(index)


def test_an_autoencoder_takes_images_of_one_size(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, [(8, 8), (9, 12)])
    given = ["codec", "train", str(tmp_path), "--data.image-size", "native", "--out", "../run"]
    assert cli.run(given) == 2
    assert "data.image_size is native; expected the side of a square" in capsys.readouterr().err
