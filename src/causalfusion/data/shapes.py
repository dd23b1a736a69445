"""Procedural scenes of one to three coloured figures, with captions, each determined by its index alone. The
class is the number of figures. Of any size, a scene is a square, or half as wide again, or half as high
again, in equal parts.

Six pairs of shape and colour occur only in the split `compositional`, where every figure is one of them.
"""

from __future__ import annotations

import math
from bisect import bisect
from typing import get_args

import numpy as np

from causalfusion.config import DataConfig, SplitName
from causalfusion.config.sizes import Fit
from causalfusion.data.drawing import COLORS, SHAPES, SIZES, Scene, SceneObject, draw_scene
from causalfusion.data.scene_captions import CLEAR_OFFSET, describe
from causalfusion.data.source import Example
from causalfusion.errors import UserError
from causalfusion.files import hash_of
from causalfusion.rng import derive_seed

HELD_OUT = (
    ("circle", "purple"),
    ("square", "red"),
    ("triangle", "cyan"),
    ("diamond", "green"),
    ("star", "blue"),
    ("circle", "yellow"),
)
"""(shape, color) pairs of the compositional split."""
SEEN = tuple((shape, color) for shape in SHAPES for color in COLORS if (shape, color) not in HELD_OUT)
LENGTHS: dict[SplitName, int] = {"train": 200_000, "validation": 5_000, "test": 5_000, "compositional": 5_000}
NUM_CAPTIONS = 4
GAP = 1.5 / 32
"""Least distance between the circumscribed circles of two figures, in units of the image's side."""
BORDER = 0.5 / 32
"""Least distance of a circumscribed circle from the image's edge, in the same units."""
_TRIALS = (1, 64, 256)
"""Placements drawn at once for one, two and three figures; the first that fits is used."""
_PAIRS_OF_FIGURES = {count: np.triu_indices(count, 1) for count in (1, 2, 3)}
MIN_SIDE = 16
_ASPECTS = ((1.0, 1.0), (1.0, 1.5), (1.5, 1.0))
"""Height and width, in units of the shorter side, of scenes of any size."""


class Shapes:
    """The scenes of one split, (height, width, 3); `num_objects` 0 mixes one, two and three figures."""

    name, has_captions = "shapes", True

    def __init__(
        self,
        split: SplitName = "train",
        *,
        side: int = 32,
        fit: Fit | None = None,
        num_objects: int = 0,
        object_shares: tuple[float, float, float] = DataConfig.object_shares,
        length: int | None = None,
    ) -> None:
        """`object_shares`: of one, two and three figures, where `num_objects` is 0; they sum to 1. `fit`,
        instead of the side of a square: one size, or the area of images of any size."""
        fit = fit or Fit(side, side)
        side = math.isqrt(int(fit.max_area / 1.5)) if fit.max_area else min(fit.height, fit.width)
        if split not in get_args(SplitName):
            raise UserError(
                f"shapes has no split {split!r}; expected one of {', '.join(get_args(SplitName))}"
            )
        if side < MIN_SIDE:
            raise UserError(
                f"shapes cannot be drawn on {side} pixels; expected a side of at least {MIN_SIDE}"
            )
        if num_objects not in (0, 1, 2, 3):
            raise UserError(f"shapes: num_objects is {num_objects}; expected 1, 2, 3, or 0 for all of them")
        if length is not None and length < 1:
            raise UserError(f"shapes: length is {length}; expected at least 1, or none for the split's own")
        self.split: SplitName = split
        self.side = side
        """The shorter one."""
        self._size = (fit.height, fit.width)
        self.num_objects = num_objects
        self.class_names = ["one object", "two objects", "three objects"]
        self._shares = tuple(object_shares)
        self._length = LENGTHS[split] if length is None else length
        self._pairs = HELD_OUT if split == "compositional" else SEEN

    def __len__(self) -> int:
        return self._length

    def scene(self, index: int) -> Scene:
        """The scene of an index, the same at every `side`; no two of its figures have the same shape and
        colour. Raises IndexError."""
        return self._draw(index)[0]

    def label(self, index: int) -> int:
        return len(self.scene(index).figures) - 1

    def captions(self, index: int) -> tuple[str, ...]:
        """Descriptions of a scene, all different. Raises IndexError."""
        return _captions(*self._draw(index))

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        if self._size[0]:
            return self._size
        height, width = _ASPECTS[derive_seed(index, "aspect") % len(_ASPECTS)]
        return int(height * self.side), int(width * self.side)

    def read(self, index: int) -> Example:
        scene, random = self._draw(index)
        image = draw_scene(scene, *self.image_size(index))
        return Example(image, len(scene.figures) - 1, captions=_captions(scene, random))

    def fingerprint(self) -> str:
        first = [self.read(index) for index in range(min(3, self._length))]
        drawn = [(example.image.tobytes().hex(), example.captions) for example in first]
        size = [*self._size] if self._size != (self.side, self.side) else []
        shares = [*self._shares] if self._shares != DataConfig.object_shares else []
        known = [self.name, self.split, self.side, *size, self.num_objects, *shares, self._length]
        return hash_of([*known, drawn])

    def _draw(self, index: int) -> tuple[Scene, np.random.Generator]:
        """(scene, the generator after drawing it). Each (split, index) has a random stream of its own."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        stream = get_args(SplitName).index(self.split)
        random = np.random.Generator(np.random.Philox(key=[index, stream]))
        one, two, _ = self._shares
        count = self.num_objects or 1 + bisect((one, one + two), random.random())
        pairs = [self._pairs[i] for i in random.random(len(self._pairs)).argsort()[:count]]
        names, jitter = tuple(SIZES), random.random(count)
        sizes = [names[int(drawn * len(names))] for drawn in random.random(count)]
        radii = _radii(sizes, jitter)
        height, width = self.image_size(index)
        extent = np.array([width, height]) / self.side
        while (places := _place(radii, random, extent)) is None:
            if "large" in sizes:  # too crowded: small figures fit at once
                sizes[sizes.index("large")] = "small"
                radii = _radii(sizes, jitter)
        rows = zip(pairs, sizes, (places / extent).tolist(), radii.tolist(), strict=True)
        figures = tuple(
            SceneObject(shape, color, size, x, y, radius) for (shape, color), size, (x, y), radius in rows
        )
        return Scene(figures), random


def _captions(scene: Scene, random: np.random.Generator) -> tuple[str, ...]:
    found: dict[str, None] = {}
    while len(found) < NUM_CAPTIONS:
        found[describe(scene, random)] = None
    return tuple(found)


def _radii(sizes: list[str], jitter: np.ndarray) -> np.ndarray:
    smallest, largest = np.array([SIZES[size] for size in sizes]).T
    return smallest + jitter * (largest - smallest)


def _place(radii: np.ndarray, random: np.random.Generator, extent: np.ndarray) -> np.ndarray | None:
    """(N, 2) centres of N circles that lie inside the image and apart from one another; None if no trial
    succeeded. `extent` (2,): width and height of the image, in units of its shorter side as all lengths. In
    long images too, which of two circles is further along one axis is clear."""
    count = len(radii)
    lowest = (radii + BORDER)[:, None]
    places = lowest + random.random((_TRIALS[count - 1], count, 2)) * (extent - 2 * lowest)
    first, second = _PAIRS_OF_FIGURES[count]
    offsets = places[:, first] - places[:, second]
    apart = (offsets**2).sum(-1) >= (radii[first] + radii[second] + GAP) ** 2
    clear = (np.abs(offsets / extent) >= CLEAR_OFFSET).any(-1)
    fits = (apart & clear).all(-1).nonzero()[0]
    return places[fits[0]] if len(fits) else None
