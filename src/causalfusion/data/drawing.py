"""Scenes of coloured figures, and their drawing at any resolution.

Shape letters: H and W pixels, E edges of an outline. Positions of figures are in units of the image's width
and height, x to the right and y downwards, radii in units of its shorter side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 50, 180),
    "orange": (240, 130, 30),
    "cyan": (40, 190, 200),
    "black": (25, 25, 25),
}
SIZES = {"small": (0.125, 0.135), "large": (0.197, 0.21)}
"""Range of the radius: 4.0 to 4.3 and 6.3 to 6.7 of 32 pixels."""
BACKGROUND = (245, 245, 240)


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; `radius` is that of its circumscribed circle."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    figures: tuple[SceneObject, ...]


class Outline(NamedTuple):
    """A shape of radius 1: its E edges as lines, normal * point = offset. A point is inside if it lies beyond
    at most `spare` of the lines: 0 for a convex shape, 1 for a star, whose tips lie beyond one."""

    normals: np.ndarray
    """(E, 2) x and y."""
    offset: float
    spare: int
    area: float


def _normals(*degrees: float) -> np.ndarray:
    return np.array([(math.cos(math.radians(d)), math.sin(math.radians(d))) for d in degrees], np.float32)


_DIAMOND_WIDTH = 0.7
"""Ratio of a diamond's width to its height."""
_LEAN = math.degrees(math.atan(_DIAMOND_WIDTH))
CIRCLE_RADIUS = 0.86
"""Less than 1, as a circle that filled its circumscribed circle would look larger than the other shapes."""
OUTLINES = {
    "square": Outline(_normals(0, 90, 180, 270), math.sqrt(0.5), 0, 2.0),
    "triangle": Outline(_normals(90, -30, 210), 0.5, 0, 0.75 * math.sqrt(3)),
    "diamond": Outline(
        _normals(_LEAN, -_LEAN, 180 - _LEAN, 180 + _LEAN),
        math.sin(math.radians(_LEAN)),
        0,
        2 * _DIAMOND_WIDTH,
    ),
    "star": Outline(_normals(-90, -18, 54, 126, 198), math.cos(math.radians(72)), 1, 1.12257),
}
AREA = {"circle": math.pi * CIRCLE_RADIUS**2} | {name: outline.area for name, outline in OUTLINES.items()}
"""Area of each shape at radius 1."""


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) fraction of each pixel that a shape covers, with an edge one pixel wide. `x` (W,) and `y` (H,)
    are the pixels' centres relative to the figure's; they and `radius` are in pixels."""
    if shape == "circle":
        outside = np.sqrt(x * x + (y * y)[:, None]) - CIRCLE_RADIUS * radius
    else:
        outline = OUTLINES[shape]
        beyond = np.multiply.outer(outline.normals[:, 1], y)[:, :, None]
        beyond = beyond + np.multiply.outer(outline.normals[:, 0], x)[:, None, :]  # (E, H, W)
        if outline.spare:
            beyond.partition(len(beyond) - 1 - outline.spare, axis=0)
            outside = beyond[-1 - outline.spare]
        else:
            outside = beyond.max(axis=0)
        outside = outside - outline.offset * radius
    return np.minimum(np.maximum(0.5 - outside, 0), 1)


_COLOR_STEPS = {name: np.array(rgb, np.float32) - np.array(BACKGROUND) for name, rgb in COLORS.items()}


def draw_figure(image: np.ndarray, figure: SceneObject) -> None:
    """Draw a figure, in place, onto the background of an image (H, W, 3) uint8."""
    height, width = image.shape[:2]
    x, y, radius = figure.x * width, figure.y * height, figure.radius * min(height, width)
    left, top = max(0, int(x - radius - 0.5)), max(0, int(y - radius - 0.5))
    right, bottom = min(width, int(x + radius + 1.5)), min(height, int(y + radius + 1.5))
    columns = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    rows = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)
    patch = image[top:bottom, left:right]
    covered = coverage(figure.shape, columns, rows, radius)[:, :, None]
    # Adding a half before the cast truncates rounds to nearest, as all values are positive.
    patch[...] = patch + covered * _COLOR_STEPS[figure.color] + 0.5


def draw_scene(scene: Scene, height: int, width: int = 0) -> np.ndarray:
    """The image of a scene, (height, width or height, 3) uint8."""
    image = np.empty((height, width or height, 3), np.uint8)
    image[:] = BACKGROUND
    for figure in scene.figures:
        draw_figure(image, figure)
    return image
