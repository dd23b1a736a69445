"""Procedural scenes, deterministic by index: one coloured shape at 32x32; class = shape x colour.

Shape letters: H and W pixels. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from causalfusion.data.source import Example, hash_of

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
BACKGROUND = (245, 245, 240)
SIDE = 32


@dataclass(frozen=True)
class Figure:
    """One shape: its centre and radius in units of the image's side."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


def _polygon(num_points: int, inner: float, turn: float) -> np.ndarray:
    """(num_points, 2) corners at radius 1 and, between them, at radius `inner` (1: a regular polygon)."""
    angles = turn + 2 * math.pi * np.arange(num_points) / num_points
    radii = np.where(np.arange(num_points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


_CORNERS = {
    "square": _polygon(4, 1.0, math.pi / 4),
    "triangle": _polygon(3, 1.0, -math.pi / 2),
    "diamond": _polygon(4, 0.62, -math.pi / 2),
    "star": _polygon(10, 0.42, -math.pi / 2),
}


def _signed_distance(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance to a polygon's outline, negative inside (even-odd rule)."""
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge_x, edge_y = bx - ax, by - ay
        along = ((x - ax) * edge_x + (y - ay) * edge_y) / (edge_x**2 + edge_y**2)
        along = np.clip(along, 0, 1)
        squared = np.minimum(squared, (x - ax - along * edge_x) ** 2 + (y - ay - along * edge_y) ** 2)
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < ax + (y - ay) / edge_y * edge_x)
    return np.where(inside, -1, 1) * np.sqrt(squared)


def draw_figure(canvas: np.ndarray, figure: Figure) -> None:
    """Paint one figure onto a float canvas (H, W, 3), anti-aliased over one pixel at its edge."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    x, y = x / width - figure.x, y / height - figure.y
    if figure.shape == "circle":
        distance = np.hypot(x, y) - figure.radius
    else:
        distance = _signed_distance(x, y, _CORNERS[figure.shape] * figure.radius)
    coverage = np.clip(0.5 - distance * height, 0, 1)[..., None]
    canvas += coverage * (np.array(COLORS[figure.color], dtype=np.float64) - canvas)


class Shapes:
    """Class `c` is SHAPES[c // 8] in the colour c % 8; place and size are drawn from the index."""

    name = "shapes"

    def __init__(self, length: int = 50_000) -> None:
        self.class_names = [f"{color} {shape}" for shape in SHAPES for color in COLORS]
        self._length = length

    def __len__(self) -> int:
        return self._length

    def figure(self, index: int) -> Figure:
        shape, color = divmod(index % len(self.class_names), len(COLORS))
        random = np.random.Generator(np.random.Philox(key=[index, 0]))
        radius = random.uniform(0.18, 0.36)
        x, y = random.uniform(radius, 1 - radius, size=2)
        return Figure(SHAPES[shape], list(COLORS)[color], float(x), float(y), float(radius))

    def read(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(index)
        canvas = np.empty((SIDE, SIDE, 3))
        canvas[:] = BACKGROUND
        figure = self.figure(index)
        draw_figure(canvas, figure)
        article = "an" if figure.color[0] in "aeiou" else "a"
        caption = f"{article} {figure.color} {figure.shape}"
        return Example(np.round(canvas).astype(np.uint8), index % len(self.class_names), caption)

    def fingerprint(self) -> str:
        return hash_of([self.name, self._length, SIDE, SHAPES, sorted(COLORS.items())])
