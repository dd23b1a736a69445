"""The oracles: scenes are read back from their pixels, and captions judged, right on 99.5 % of real ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageFilter

from causalfusion.config import SplitName
from causalfusion.data.drawing import BACKGROUND, COLORS, Scene, SceneObject, draw_scene
from causalfusion.data.scene_captions import Description, Named, parse_caption
from causalfusion.data.shapes import Shapes
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.scenes import (
    UNKNOWN,
    Match,
    caption_truth,
    connected_regions,
    matches,
    read_scene,
    scene_accuracy,
)

SPLITS = get_args(SplitName)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def is_read(found: Scene, scene: Scene, side: int) -> bool:
    """Number, shapes, colours and sizes right, and centres within one pixel."""
    rest = list(found.figures)
    for figure in scene.figures:
        near = [f for f in rest if max(abs(f.x - figure.x), abs(f.y - figure.y)) * side <= 1]
        near = [f for f in near if (f.shape, f.color, f.size) == (figure.shape, figure.color, figure.size)]
        if not near:
            return False
        rest.remove(near[0])
    return not rest


def degraded(image: np.ndarray, sigma: float, blur: float, seed: int) -> np.ndarray:
    """With a blur of so many of 32 pixels, and noise of so many grey levels."""
    soft = Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur * len(image) / 32))
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(np.round(np.asarray(soft) + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_read_from_their_pixels(split: SplitName, side: int):
    source = Shapes(split, side=side)
    scenes = [source.scene(index) for index in range(1000 if side == 32 else 600)]
    right = [is_read(read_scene(draw_scene(scene, side)), scene, side) for scene in scenes]
    assert np.mean(right) >= 0.995


def flooded(kind: np.ndarray) -> np.ndarray:
    """Regions by flood fill, numbered in the order of their first pixels."""
    numbers, count = np.zeros(kind.shape, np.int64), 0
    for start in zip(*np.nonzero(kind >= 0), strict=True):
        count += not numbers[start]
        waiting = [] if numbers[start] else [start]
        while waiting:
            row, column = waiting.pop()
            inside = 0 <= row < kind.shape[0] and 0 <= column < kind.shape[1]
            if inside and not numbers[row, column] and kind[row, column] == kind[start]:
                numbers[row, column] = count
                waiting += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return numbers


@pytest.mark.parametrize("seed", range(12))
def test_connected_regions_equal_a_flood_fill(seed: int):
    """Up to their numbers: the same pixels together, and none where there is no colour."""
    random = np.random.default_rng(seed)
    kind = random.integers(-1, random.integers(0, 4), random.integers(1, 20, size=2))
    found, expected = connected_regions(kind), flooded(kind)
    pairs = set(zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(set(found.ravel().tolist())) == len(set(expected.ravel().tolist()))
    assert ((found == 0) == (kind < 0)).all() and found.max() == expected.max()


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(("sigma", "blur"), [(6, 0.5), (12, 0.7), (0, 1.0)])
def test_noise_and_soft_edges_are_tolerated(side: int, sigma: float, blur: float):
    source = Shapes("test", side=side)
    scenes = [source.scene(index) for index in range(250)]
    images = [degraded(draw_scene(scene, side), sigma, blur, seed) for seed, scene in enumerate(scenes)]
    right = [is_read(read_scene(image), scene, side) for image, scene in zip(images, scenes, strict=True)]
    assert np.mean(right) >= 0.97


@pytest.mark.parametrize("side", [32, 64])
def test_specks_do_not_count_and_half_a_figure_is_none(side: int):
    scale, checked, halves = side // 32, 0, []
    for index in range(100):
        scene = Shapes("test", side=side, num_objects=1).scene(index)
        image, (figure,) = draw_scene(scene, side), scene.figures
        specked = image.copy()
        corner = (slice(0, 2 * scale), slice(0, 2 * scale))
        if (image[corner] == BACKGROUND).all() and max(figure.x, figure.y) > 0.4:
            specked[corner] = COLORS["green"]
            checked += 1
        assert is_read(read_scene(specked), scene, side)
        image[:, int(figure.x * side) :] = BACKGROUND
        halves += ["itself" if f.shape == figure.shape else f.shape for f in read_scene(image).figures]
    assert checked > 50 and halves.count(UNKNOWN) > 80 and halves.count("itself") < 5


def test_any_image_is_read():
    random = np.random.default_rng(0)
    for side in (16, 32, 64):
        noise = random.integers(0, 256, (side, side, 3)).astype(np.uint8)
        assert all(0 < f.radius < 1 for f in read_scene(noise).figures)
        coarse = random.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
        for image in coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2):
            assert all(0 < f.radius < 1 for f in read_scene(image).figures)
        blank = np.broadcast_to(np.array(BACKGROUND, np.uint8), (side, side, 3))
        assert read_scene(blank) == Scene(())
        full = np.broadcast_to(np.array(COLORS["cyan"], np.uint8), (side, side, 3))
        assert [f.color for f in read_scene(full).figures] == ["cyan"]
    with pytest.raises(UserError, match=r"shape \(8, 8, 1\) of uint8; expected \(H, W, 3\) of uint8"):
        read_scene(np.zeros((8, 8, 1), np.uint8))


RED = SceneObject("circle", "red", "small", 0.2, 0.2, 0.13)
BLUE = SceneObject("star", "blue", "large", 0.7, 0.3, 0.2)
TWIN = SceneObject("circle", "red", "large", 0.3, 0.75, 0.2)


def judge(caption: str, *figures: SceneObject) -> Match:
    description = parse_caption(caption)
    assert description is not None
    return matches(description, Scene(figures))


def test_what_is_judged_alone_and_together():
    def wrong(caption: str, *figures: SceneObject) -> set[str]:
        return {name for name, right in vars(judge(caption, *figures)).items() if not right}

    both = (BLUE, RED)
    assert wrong("a small red circle left of a big blue star", *both) == set()
    assert wrong("a red circle and a blue star", *both) == set()
    assert wrong("a small red circle right of a big blue star", *both) == {"relations", "all"}
    assert wrong("a big red circle left of a big blue star", *both) == {"sizes", "all"}
    assert wrong("a small blue circle left of a big red star", *both) == {"objects", "all"}
    assert wrong("a small red circle left of a big blue square", *both) == {"objects", "shapes", "all"}
    assert wrong("a small red circle left of a big green star", *both) == {"objects", "colors", "all"}
    one_too_few = {"objects", "colors", "shapes", "all"}
    assert wrong("a small red circle in the top left", *both) == one_too_few
    assert wrong("a small red circle left of a big blue star", RED) == one_too_few | {"sizes", "relations"}
    assert wrong("a small red circle in the top left", RED) == set()
    assert wrong("a small red circle in the bottom left", RED) == {"relations", "all"}
    assert wrong("a red circle") == one_too_few | {"sizes"}
    # Near a border of the zones both places are true; well inside another only one is.
    between = replace(RED, x=0.4, y=0.2)
    assert judge("a red circle at the top", between).all
    assert judge("a red circle in the top left", between).all


def test_two_that_look_alike_are_told_apart_by_what_makes_it_true():
    for caption in (
        "a small red circle above a large red circle",
        "a big red circle below a tiny red circle",
        "a big red circle and a tiny red circle above it",
        "a red circle above a red circle",
    ):
        for figures in ((RED, TWIN), (TWIN, RED)):
            assert judge(caption, *figures).all  # fmt: skip
    assert not judge("a big red circle above a small red circle", RED, TWIN).all
    assert not judge("a red circle left of a red circle", replace(TWIN, x=0.2), RED).all
    many = Scene(tuple(replace(RED, x=x / 20) for x in range(20)))
    assert not matches(Description((Named(None, "red", "circle"),) * 3), many).all


def corrupted(description: Description) -> list[Description]:
    """With another colour, an object less, each relation turned round, each size and place exchanged."""
    first, *rest = description.objects
    used = {named.color for named in description.objects}
    color = next(c for c in COLORS if c not in used)
    size = "large" if first.size == "small" else "small"
    found = [
        replace(description, objects=(first._replace(color=color), *rest)),
        replace(description, objects=(first._replace(size=size), *rest)),
        Description(tuple(rest)),
        Description((*description.objects, first)),
    ]
    for i, relation, j in description.relations:
        found.append(replace(description, relations=((i, OPPOSITE[relation], j),)))
    for i, place in description.places:
        found.append(replace(description, places=((i, "center" if place != "center" else "left"),)))
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_true_captions_match_what_is_read_and_corrupted_ones_do_not(split: SplitName):
    source = Shapes(split)
    scenes = [read_scene(source.read(index).image) for index in range(500)]
    true, false = [], []
    for index, scene in enumerate(scenes):
        for caption in source.captions(index)[:2]:
            description = parse_caption(caption)
            assert description is not None
            true.append(matches(description, scene).all)
            false += [matches(wrong, scene).all for wrong in corrupted(description)]
    assert np.mean(true) >= 0.995 and np.mean(false) <= 0.005


def test_shares():
    source = Shapes("validation")
    scenes = [source.scene(index) for index in range(200)]
    captions = [source.captions(index)[1] for index in range(200)]
    respects = {"objects", "colors", "shapes", "sizes", "relations", "all"}
    assert caption_truth(captions, scenes) == dict.fromkeys(respects | {"parsed"}, 1.0)
    descriptions = [parse_caption(caption) or Description(()) for caption in captions]
    assert scene_accuracy(descriptions, scenes) == dict.fromkeys(respects, 1.0)
    shifted = scene_accuracy(descriptions, scenes[1:] + scenes[:1])
    assert shifted["all"] < 0.05 and shifted["objects"] <= shifted["colors"] < 0.4

    given = "a small red circle", "a large red circle in the top left", "nonsense", "a blue circle at the top"
    found = caption_truth(given, [Scene((RED,))] * 4)
    assert found.pop("relations") == 0.5  # of the two that state a place
    assert found == {"parsed": 0.75, "objects": 0.5, "colors": 0.5, "shapes": 0.75, "sizes": 0.5, "all": 0.25}
    assert "relations" not in caption_truth(["a red circle"], [Scene((RED,))])
    with pytest.raises(UserError, match="nothing to judge"):
        caption_truth([], [])
    assert not math.isnan(caption_truth(["nonsense"], [Scene(())])["all"])
