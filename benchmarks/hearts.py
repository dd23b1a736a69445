"""Scenes with a shape that the packaged model never saw, and a judge of them.

    python -m benchmarks.hearts hearts                          # 80 captioned scenes, hearts/scenes.jsonl
    python -m benchmarks.hearts words --word '<heart>'

A heart is a diamond with two discs on its upper edges. The judge works as the oracle of the other shapes: the
colour of a figure from its inner pixels, its shape from the pixels that it covers.

Shape letters: H and W pixels.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from causalfusion.data.drawing import (
    AREA,
    BACKGROUND,
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    coverage,
    draw_scene,
)
from causalfusion.data.scene_captions import describe
from causalfusion.evaluate.measures.scenes import BETWEEN_SIZES, UNKNOWN, WORST_FIT, connected_regions

SIDE = 32
HEART = "heart"
SHOWN = ("red", "green", "blue", "orange", "cyan", "black")
"""Colours in which hearts are shown; yellow and purple ones are for the test alone."""
NOT_SHOWN = tuple(color for color in COLORS if color not in SHOWN)
_H = math.sqrt(0.5)
"""Half the diamond's diagonal, at radius 1: the discs then touch the circumscribed circle."""
_AREA = (2 + math.pi / 2) * _H**2
_CENTROID = -(0.5 + 4 / (6 * math.pi)) * _H * (math.pi / 2) / (2 + math.pi / 2)
"""Height of the centroid over the centre, negative upwards, at radius 1."""


@dataclass(frozen=True)
class Seen:
    """What the judge sees in an image."""

    figures: int
    color: str = ""
    shape: str = ""
    size: str = ""


def heart_coverage(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) fraction of each pixel that a heart covers; as `drawing.coverage`."""
    h, rows, columns = _H * radius, y[:, None], x[None, :]
    diamond = (np.abs(columns) + np.abs(rows) - h) * math.sqrt(0.5)
    disc = h * math.sqrt(0.5)
    discs = np.hypot(np.abs(columns) - h / 2, rows + h / 2) - disc
    return np.clip(0.5 - np.minimum(diamond, discs), 0, 1)


def draw_heart(figure: SceneObject) -> np.ndarray:
    """The image (H, W, 3) uint8 of a scene with this heart alone."""
    places = np.arange(SIDE) + 0.5
    covered = heart_coverage(places - figure.x * SIDE, places - figure.y * SIDE, figure.radius * SIDE)[
        :, :, None
    ]
    step = np.array(COLORS[figure.color]) - np.array(BACKGROUND)
    return (np.array(BACKGROUND) + covered * step + 0.5).astype(np.uint8)


def random_figure(shape: str, color: str, random: np.random.Generator) -> SceneObject:
    size = ("small", "large")[int(random.integers(2))]
    radius = float(random.uniform(*SIZES[size]))
    x, y = (float(random.uniform(radius + 0.02, 0.98 - radius)) for _ in range(2))
    return SceneObject(shape, color, size, x, y, radius)


def write_scenes(folder: Path, count: int, seed: int, word: str = HEART) -> Path:
    """Write `count` captioned scenes with a heart, named `word`; the JSONL file that lists them."""
    random = np.random.default_rng([seed, 1])
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        figure = random_figure(HEART, SHOWN[number % len(SHOWN)], random)
        Image.fromarray(draw_heart(figure)).save(folder / f"{number:03d}.png")
        captions = [describe(Scene((figure,)), random).replace(HEART, word) for _ in range(3)]
        lines.append(json.dumps({"image": f"{number:03d}.png", "captions": captions}))
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "scenes.jsonl"


def prompts(count: int, colors: tuple[str, ...], word: str = HEART) -> list[tuple[str, SceneObject]]:
    """Captions of scenes with a heart of these colours in turn, each with its heart."""
    random = np.random.default_rng(7)
    figures = [random_figure(HEART, colors[n % len(colors)], random) for n in range(count)]
    return [(describe(Scene((f,)), random).replace(HEART, word), f) for f in figures]


def is_right(image: np.ndarray, asked: SceneObject) -> bool:
    """True if an image (H, W, 3) uint8 shows the heart that was asked for, of its colour and size, alone."""
    return look(image) == Seen(1, asked.color, asked.shape, asked.size)


def look(image: np.ndarray) -> Seen:
    """The figures in an image, and colour, shape and size of the only one."""
    difference = image.astype(np.float32) - np.array(BACKGROUND, np.float32)
    regions = connected_regions((np.linalg.norm(difference, axis=2) > 60) - 1)
    sizes = np.bincount(regions.ravel())[1:]
    large = np.flatnonzero(sizes >= 6) + 1
    if len(large) != 1:
        return Seen(len(large))
    figure = regions == large[0]
    inner = binary_erosion(figure)
    inside: np.ndarray = inner if inner.any() else figure
    color = np.median(image[inside], axis=0)
    name = min(COLORS, key=lambda key: float(np.linalg.norm(color - np.array(COLORS[key]))))
    step = np.array(COLORS[name], np.float32) - np.array(BACKGROUND, np.float32)
    share = np.clip(difference @ step / float(step @ step), -0.3, 1.3)
    shape, radius = _shape_of(share)
    return Seen(1, name, shape, "small" if radius < BETWEEN_SIZES else "large")


def _shape_of(share: np.ndarray) -> tuple[str, float]:
    """The shape that covers `share` (H, W) of each pixel best, and its radius in units of the side."""
    places, area = np.arange(SIDE) + 0.5, max(float(share.sum()), 1.0)
    x, y = float(share.sum(0) @ places) / area, float(share.sum(1) @ places) / area
    found = {}
    for shape in (*SHAPES, HEART):
        radius = (area / (_AREA if shape == HEART else AREA[shape])) ** 0.5
        if shape == HEART:
            expected = heart_coverage(places - x, places - y + _CENTROID * radius, radius)
        else:
            expected = coverage(shape, places - x, places - y, radius)
        found[shape] = (float(((expected - share) ** 2).sum()) / area, radius / SIDE)
    best = min(found, key=lambda key: found[key][0])
    error, radius = found[best]
    return best if error <= WORST_FIT else UNKNOWN, radius


def check_judge(count: int = 300) -> float:
    """Share of real scenes, hearts and the other shapes in turn, that the judge reads as they are."""
    random, right = np.random.default_rng(3), 0
    for number in range(count):
        shape = (*SHAPES, HEART)[number % 6]
        figure = random_figure(shape, list(COLORS)[number % 8], random)
        image = draw_heart(figure) if shape == HEART else draw_scene(Scene((figure,)), SIDE)
        right += look(image) == Seen(1, figure.color, shape, figure.size)
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hearts", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--word", default=HEART, help="the name of the shape in the captions")
    given = parser.parse_args()
    print(write_scenes(given.folder, given.count, 0, given.word))


if __name__ == "__main__":
    main()
