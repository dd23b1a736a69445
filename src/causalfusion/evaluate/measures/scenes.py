"""Oracles for the data set `shapes`: read the scene from an image, and judge whether a caption is true of it.

Shape letters: H and W pixels, K colours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np

from causalfusion.data.drawing import AREA, BACKGROUND, COLORS, SHAPES, SIZES, Scene, SceneObject, coverage
from causalfusion.data.scene_captions import Description, is_at, is_related, parse_caption
from causalfusion.errors import UserError

SMALLEST_AREA = 6 / 32**2
"""Area of the smallest figure, as a share of the image; anything smaller is a speck."""
BETWEEN_SIZES = (SIZES["small"][1] + SIZES["large"][0]) / 2
"""Radius that separates small figures from large ones."""
WORST_FIT = 0.15
"""Squared difference between covered and expected pixels, divided by the area, beyond which a figure has none
of the shapes. Real figures, blurred and noisy, stay below 0.05; halves of figures start at 0.11."""
UNKNOWN = "unknown"
"""Shape of a figure that fits none of the shapes."""
SOFTNESS = 0.7 / 32
"""Sigma, as a share of the side, of the blurred shapes that figures are compared with beside sharp ones: soft
edges then do no harm."""
MAX_FIGURES = 8
"""Largest figures of a crowded image that a description is compared with."""

_COLOR_NAMES = tuple(COLORS)
_STEPS = np.array([COLORS[name] for name in COLORS], np.float32) - np.array(BACKGROUND, np.float32)


def read_scene(image: np.ndarray) -> Scene:
    """The scene that an image (H, W, 3) uint8 shows, its figures from the largest to the smallest.

    A pixel is taken as a mixture of the background with the colour that explains it best. A figure is a
    connected region of pixels that one colour covers at least by half. Its centre is the centroid; for each
    shape the area gives a radius, and the figure has the shape whose pixels then differ least, or `UNKNOWN`.
    Raises UserError for images of another shape or type."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"an image has shape {image.shape} of {image.dtype}; expected (H, W, 3) of uint8")
    side = min(image.shape[:2])
    difference = image.astype(np.float32) - np.array(BACKGROUND, np.float32)
    share = difference @ (_STEPS / (_STEPS**2).sum(1, keepdims=True)).T  # (H, W, K)
    # |difference - mixed * step|^2 minus |difference|^2, which all colours share.
    mixed = np.clip(share, 0, 1)
    color = ((mixed * mixed - 2 * mixed * share) * (_STEPS**2).sum(1)).argmin(axis=2)
    kind = np.where(np.take_along_axis(share, color[:, :, None], 2)[:, :, 0] > 0.5, color, -1)
    from scipy.ndimage import maximum_filter

    numbers = connected_regions(kind)
    found, first, area = np.unique(numbers, return_index=True, return_counts=True)
    largest_first = np.lexsort((first, -area))  # of equal areas the upper one first
    kept = [found[i] for i in largest_first if found[i] and area[i] >= SMALLEST_AREA * side**2]
    taken = np.isin(numbers, kept)
    reach = max(1, round(side / 32))
    figures = []
    for number in kept:
        own = numbers == number
        index = int(kind.flat[own.argmax()])
        # Extended by the pixels around it, where its soft edge may be.
        region = maximum_filter(own, 2 * reach + 1, mode="constant") & (own | ~taken)
        figures.append(_fit(share[:, :, index] * region, _COLOR_NAMES[index]))
    return Scene(tuple(figures))


def connected_regions(kind: np.ndarray) -> np.ndarray:
    """Numbers of the connected regions of equal `kind` (H, W) int64, from 1 on; 0 where `kind` is negative.
    Pixels are connected by their sides, not by their corners."""
    from scipy.ndimage import label

    numbers = np.zeros(kind.shape, np.int64)
    for value in np.unique(kind[kind >= 0]):
        regions, _ = label(kind == value)  # pyright: ignore[reportGeneralTypeIssues]
        numbers += np.where(regions, regions + numbers.max(), 0)
    return numbers


def _blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Images (N, H, W) smoothed by a Gaussian with sigma in pixels; they are surrounded by zeros.

    Not scipy.ndimage.gaussian_filter, which divides by the sum of the sampled Gaussian. At H = 16 (sigma
    0.35) that sum is 1.18, and 125 figures of 1,280 images were read otherwise; at H = 32 and above none."""

    def weights(length: int) -> np.ndarray:
        distance = np.subtract.outer(np.arange(length), np.arange(length))
        return np.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

    return weights(images.shape[1]) @ images @ weights(images.shape[2])


def _fit(share: np.ndarray, color: str) -> SceneObject:
    """The figure of this colour that covers `share` (H, W) of each pixel."""
    height, width = share.shape
    side = min(height, width)
    # Noise beyond 0 and 1 stays, so that it averages out instead of making figures larger.
    share = np.clip(share, -0.3, 1.3)
    rows, columns = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
    top, bottom, left, right = rows[0] - 1, rows[-1] + 2, columns[0] - 1, columns[-1] + 2
    patch = np.pad(share, 1)[top + 1 : bottom + 1, left + 1 : right + 1]
    area = max(float(patch.sum()), 1.0)  # pixels brighter than the background count as negative
    x = float(patch.sum(0) @ (np.arange(left, right) + 0.5)) / area
    y = float(patch.sum(1) @ (np.arange(top, bottom) + 0.5)) / area
    across, down = np.arange(left, right) + 0.5 - x, np.arange(top, bottom) + 0.5 - y
    sharp = np.stack([coverage(s, across, down, (area / AREA[s]) ** 0.5) for s in SHAPES])
    soft = _blurred(sharp, SOFTNESS * side)
    errors = np.minimum(*(((expected - patch) ** 2).sum((1, 2)) for expected in (sharp, soft))) / area
    shape = SHAPES[int(errors.argmin())]
    radius = (area / AREA[shape]) ** 0.5 / side
    size = "small" if radius < BETWEEN_SIZES else "large"
    known = shape if errors.min() <= WORST_FIT else UNKNOWN
    return SceneObject(known, color, size, x / width, y / height, radius)


@dataclass(frozen=True)
class Match:
    """Judgement of a description of a scene, in each respect and in all together."""

    objects: bool
    """The scene has exactly the pairs of colour and shape that are named, each as often."""
    colors: bool
    """The scene has exactly the colours that are named, each as often."""
    shapes: bool
    """The scene has exactly the shapes that are named, each as often."""
    sizes: bool
    """Every object that is named is in the scene and has its stated size, if one is stated."""
    relations: bool
    """All stated relations and places are true."""
    all: bool
    """Objects, sizes and relations are right."""


NO_MATCH = Match(False, False, False, False, False, False)


def matches(description: Description, scene: Scene) -> Match:
    """Judge a description of a scene. Its objects are assigned to the figures in the way that makes most of
    it true: first colours and shapes, then sizes and relations."""
    named, figures = description.objects, scene.figures
    missing = (None,) * (len(named) - len(figures))
    chosen = permutations((*figures[:MAX_FIGURES], *missing), len(named))
    _, _, sizes, relations = max(_score(description, assigned) for assigned in chosen)
    objects = Counter((n.color, n.shape) for n in named) == Counter((f.color, f.shape) for f in figures)
    return Match(
        objects,
        colors=Counter(n.color for n in named) == Counter(f.color for f in figures),
        shapes=Counter(n.shape for n in named) == Counter(f.shape for f in figures),
        sizes=sizes,
        relations=relations,
        all=objects and sizes and relations,
    )


def _score(description: Description, assigned: Sequence[SceneObject | None]) -> tuple[int, int, bool, bool]:
    """Score of a description whose objects are the figures `assigned`: the number of right colours and
    shapes, the number of right ones of sizes and relations (with places), and these two."""
    pairs = list(zip(description.objects, assigned, strict=True))
    hits = sum((n.color == f.color) + (n.shape == f.shape) for n, f in pairs if f)
    sizes = all(f is not None and n.size in (None, f.size) for n, f in pairs)
    relations = all(
        (a := assigned[i]) is not None and (b := assigned[j]) is not None and is_related(a, relation, b)
        for i, relation, j in description.relations
    ) and all((a := assigned[i]) is not None and is_at(a, place) for i, place in description.places)
    return hits, sizes + relations, sizes, relations


def scene_accuracy(descriptions: Sequence[Description], scenes: Sequence[Scene]) -> dict[str, float]:
    """Text to image: the share of scenes that are as described, in each respect of a `Match`. "relations"
    counts only descriptions that state a relation or a place, and is left out if none does. Raises UserError
    if there are no scenes."""
    return _shares(descriptions, [matches(d, s) for d, s in zip(descriptions, scenes, strict=True)])


def caption_truth(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Captioning: the share of captions that can be parsed ("parsed"), and the share that is true of its
    scene in each respect of a `Match`: "all" counts captions that name every object and say nothing false. A
    caption that cannot be parsed is wrong in every respect; "relations" as in `scene_accuracy`. Raises
    UserError if there are no captions."""
    parsed = [parse_caption(caption) for caption in captions]
    found = [matches(d, s) if d else NO_MATCH for d, s in zip(parsed, scenes, strict=True)]
    shares = _shares(parsed, found)
    return {"parsed": sum(d is not None for d in parsed) / len(parsed), **shares}


def _shares(descriptions: Sequence[Description | None], found: Sequence[Match]) -> dict[str, float]:
    if not found:
        raise UserError("there is nothing to judge: 0 captions and scenes; give at least one of each")
    states = [d is not None and bool(d.relations or d.places) for d in descriptions]
    shares = {}
    for name in (field.name for field in fields(Match)):
        judged = [m for m, some in zip(found, states, strict=True) if some or name != "relations"]
        if judged:
            shares[name] = sum(getattr(match, name) for match in judged) / len(judged)
    return shares
