"""Scenes: deterministic, apart, with the pairs held out, the same at every side, drawn to their outlines."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from causalfusion.config import DataConfig, SplitName
from causalfusion.data import open_source
from causalfusion.data.drawing import AREA, BACKGROUND, COLORS, SHAPES, SIZES, Scene, SceneObject, draw_scene
from causalfusion.data.shapes import HELD_OUT, SEEN, Shapes
from causalfusion.errors import UserError

SPLITS = get_args(SplitName)
GRAY_LEVEL = 1 / 255


def test_what_an_index_shows_depends_on_nothing_else():
    one, other = open_source(DataConfig(source="shapes")), Shapes(length=300)
    read = {index: other.read(index) for index in reversed(range(100))}
    for index, expected in read.items():
        example = one.read(index)
        assert np.array_equal(example.image, expected.image) and example.image.dtype == np.uint8
        assert (example.label, example.captions) == (expected.label, expected.captions)
        assert other.captions(index) == expected.captions and len(set(expected.captions)) == 4
    assert len({example.image.tobytes() for example in read.values()}) == 100
    assert len(one) == 200_000 and one.class_names == ["one object", "two objects", "three objects"]


def test_splits_share_no_scene_and_have_their_fingerprints():
    sources = [Shapes(split) for split in SPLITS]
    assert [len(source) for source in sources] == [200_000, 5_000, 5_000, 5_000]
    images = [source.read(index).image.tobytes() for source in sources for index in range(200)]
    assert len(set(images)) == len(images)
    others = [Shapes(side=64), Shapes(num_objects=2), Shapes(length=9)]
    assert len({source.fingerprint() for source in (*sources, *others)}) == 7
    assert Shapes().fingerprint() == sources[0].fingerprint()


def test_held_out_pairs_are_only_in_the_compositional_split():
    seen = {
        split: {(f.shape, f.color) for i in range(600) for f in Shapes(split).scene(i).figures}
        for split in SPLITS
    }
    assert seen["train"] == seen["validation"] == seen["test"] == set(SEEN)
    assert seen["compositional"] == set(HELD_OUT) and not set(HELD_OUT) & set(SEEN)
    assert len(SEEN) + len(HELD_OUT) == len(SHAPES) * len(COLORS) == 40
    # Every shape and every colour is learnt, in other pairs.
    assert {shape for shape, _ in HELD_OUT} == set(SHAPES) == {shape for shape, _ in SEEN}
    assert {color for _, color in SEEN} == set(COLORS)


@pytest.mark.parametrize("split", SPLITS)
def test_figures_are_apart_inside_and_not_twice_the_same(split: SplitName):
    for index in range(400):
        figures = Shapes(split).scene(index).figures
        assert len({(f.shape, f.color) for f in figures}) == len(figures)
        for f in figures:
            assert f.radius <= min(f.x, f.y) and max(f.x, f.y) <= 1 - f.radius
            assert SIZES[f.size][0] <= f.radius <= SIZES[f.size][1]
        for a, b in combinations(figures, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + 1.4999 / 32


def test_numbers_of_figures_and_sizes():
    source = Shapes()
    scenes = [source.scene(index) for index in range(3000)]
    counts = Counter(len(scene.figures) for scene in scenes)
    assert [counts[n] / 3000 for n in (1, 2, 3)] == pytest.approx([0.40, 0.35, 0.25], abs=0.03)
    assert all(source.read(i).label == len(scenes[i].figures) - 1 for i in range(50))
    few = [f for scene in scenes if len(scene.figures) < 3 for f in scene.figures]
    assert Counter(f.size for f in few)["large"] / len(few) == pytest.approx(0.5, abs=0.03)
    for number in (1, 2, 3):
        exact = [Shapes("test", num_objects=number).scene(i) for i in range(200)]
        assert {len(scene.figures) for scene in exact} == {number}
        # Three large ones do not fit as often as they are drawn, but they occur.
        assert any(all(f.size == "large" for f in scene.figures) for scene in exact)


def test_shares_of_numbers_of_figures_are_as_set():
    source = open_source(DataConfig(source="shapes", object_shares=(0.1, 0.3, 0.6)))
    assert isinstance(source, Shapes) and source.fingerprint() != Shapes().fingerprint()
    counts = Counter(len(source.scene(index).figures) for index in range(3000))
    assert [counts[n] / 3000 for n in (1, 2, 3)] == pytest.approx([0.1, 0.3, 0.6], abs=0.03)
    for number, shares in enumerate([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)], start=1):
        scenes = [Shapes(object_shares=shares).scene(index) for index in range(100)]
        assert {len(scene.figures) for scene in scenes} == {number}
    for shares in ((0.5, 0.5, 0.5), (1.5, -0.5, 0.0)):
        with pytest.raises(UserError, match="expected three shares that sum to 1"):
            DataConfig(source="shapes", object_shares=shares)


def test_the_scene_is_the_same_at_64_pixels():
    small, large = Shapes(side=32), Shapes(side=64)
    for index in range(200):
        a, b = small.read(index), large.read(index)
        assert b.image.shape == (64, 64, 3) and a.captions == b.captions
        halved = b.image.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(halved - a.image).mean() < 255 * 0.01
        assert np.abs(halved - a.image).max() < 255 * 0.35  # corners are rounded a little otherwise


def covered(scene: Scene, side: int) -> np.ndarray:
    """(side, side) share of each pixel that the scene's one figure covers, read off the image."""
    background = np.array(BACKGROUND, float)
    color = np.array(COLORS[scene.figures[0].color]) - background
    return (draw_scene(scene, side) - background) @ color / (color @ color)


@pytest.mark.parametrize("side", [32, 64])
def test_figures_have_the_area_and_the_centre_of_their_outline_and_soft_edges(side: int):
    for index in range(200):
        scene = Shapes(side=side, num_objects=1).scene(index)
        (figure,), share = scene.figures, covered(scene, side)
        assert share.sum() == pytest.approx(AREA[figure.shape] * (side * figure.radius) ** 2, rel=0.08)
        middle = np.arange(side) + 0.5
        centre = (share.sum(0) @ middle / share.sum(), share.sum(1) @ middle / share.sum())
        assert centre == pytest.approx((figure.x * side, figure.y * side), abs=0.2)
        partly = (share > 0.05) & (share < 0.95)
        assert partly.sum() < 5 * math.pi * figure.radius * side  # a one-pixel border, not a blur
        y, x = (np.indices((side, side)) + 0.5) / side
        outside = np.hypot(x - figure.x, y - figure.y) > figure.radius + 2 / side  # tips are soft
        assert np.abs(share[outside]).max() < 2 * GRAY_LEVEL


def test_drawing_the_star_by_hand():
    star = Scene((SceneObject("star", "black", "large", 0.5, 0.5, 0.4),))
    share = covered(star, 200)
    angles = np.radians(-90 + 36 * np.arange(10))
    for angle, reach in zip(angles, np.where(np.arange(10) % 2, 0.381966, 1.0), strict=True):
        for step, expected in ((0.93, 1), (1.07, 0)):
            x, y = 100 + 80 * reach * step * math.cos(angle), 100 + 80 * reach * step * math.sin(angle)
            assert share[int(y), int(x)] == pytest.approx(expected, abs=0.01)


def test_bad_settings_are_refused():
    for mistake, message in (
        (lambda: Shapes("training"), "no split 'training'; expected one of train, validation"),  # type: ignore
        (lambda: Shapes(side=8), "8 pixels; expected a side of at least 16"),
        (lambda: Shapes(num_objects=4), "num_objects is 4; expected 1, 2, 3, or 0"),
        (lambda: Shapes(length=-1), "length is -1; expected at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            mistake()
    for index in (-1, 5):
        with pytest.raises(IndexError):
            Shapes(length=5).read(index)
