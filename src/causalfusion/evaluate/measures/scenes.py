"""Oracles for `shapes`: the scene that an image shows, and whether a caption is true of a scene.

Shape letters: H and W pixels (H = W), K colours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np

from causalfusion.data.drawing import AREA, BACKGROUND, COLORS, SHAPES, SIZES, Figure, Scene, coverage
from causalfusion.data.scene_captions import Description, is_at, is_related, parse_caption
from causalfusion.errors import UserError

SMALLEST_AREA = 6 / 32**2
"""What covers less of the image is a speck, not a figure."""
BETWEEN_SIZES = (SIZES["small"][1] + SIZES["large"][0]) / 2
WORST_FIT = 0.15
"""Squared difference of the covered pixels, over the area, beyond which a figure has none of the shapes. Real
ones, blurred and noisy, stay below 0.05; a half of one starts at 0.11."""
UNKNOWN = "unknown"
"""Its shape then."""
SOFTNESS = 0.7 / 32
"""Figures are also compared with ones blurred so much (sigma), so that soft edges do no harm."""
MAX_FIGURES = 8
"""Only the largest are considered when a description is compared with a crowded image."""

_COLOR_NAMES = tuple(COLORS)
_STEPS = np.array([COLORS[name] for name in COLORS], np.float32) - np.array(BACKGROUND, np.float32)


def read_scene(image: np.ndarray) -> Scene:
    """The scene in an image (H, W, 3) uint8, figures from the largest to the smallest; none if it is empty.

    A pixel is a mixture of the background with the colour that explains it best; figures are connected
    pixels of one colour, each at least half covered. A figure's moments tell its centre and how large each
    shape would be; its shape is the one that then covers the same pixels, or `UNKNOWN`."""
    side = len(image)
    if image.shape != (side, side, 3) or image.dtype != np.uint8:
        raise UserError(f"an image has shape {image.shape} of {image.dtype}; expected (H, H, 3) of uint8")
    difference = image.astype(np.float32) - np.array(BACKGROUND, np.float32)
    share = difference @ (_STEPS / (_STEPS**2).sum(1, keepdims=True)).T  # (H, W, K)
    # |difference - share * step|^2 less |difference|^2, which is the same for all colours; at most the whole.
    mixed = np.clip(share, 0, 1)
    color = ((mixed * mixed - 2 * mixed * share) * (_STEPS**2).sum(1)).argmin(axis=2)
    kind = np.where(np.take_along_axis(share, color[:, :, None], 2)[:, :, 0] > 0.5, color, -1)
    from scipy.ndimage import maximum_filter

    numbers = connected_regions(kind)
    found, first, area = np.unique(numbers, return_index=True, return_counts=True)
    largest_first = np.lexsort((first, -area))  # of equal area the upper one
    kept = [found[i] for i in largest_first if found[i] and area[i] >= SMALLEST_AREA * side**2]
    taken = np.isin(numbers, kept)
    reach = max(1, round(side / 32))
    figures = []
    for number in kept:
        own = numbers == number
        index = int(kind.flat[own.argmax()])
        # With the pixels around it, where its soft edge may be.
        region = maximum_filter(own, 2 * reach + 1, mode="constant") & (own | ~taken)
        figures.append(_fit(share[:, :, index] * region, _COLOR_NAMES[index]))
    return Scene(tuple(figures))


def connected_regions(kind: np.ndarray) -> np.ndarray:
    """(H, W) int64: a number from 1 on for each region of equal `kind`, joined by the pixels' sides; 0 where
    `kind` is negative."""
    from scipy.ndimage import label

    numbers = np.zeros(kind.shape, np.int64)
    for one in np.unique(kind[kind >= 0]):
        regions, _ = label(kind == one)  # pyright: ignore[reportGeneralTypeIssues]
        numbers += np.where(regions, regions + numbers.max(), 0)
    return numbers


def _blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """(N, H, W) smoothed by a Gaussian of that many pixels; 0 lies around the images.

    Not scipy.ndimage.gaussian_filter, which divides by the sum of the sampled Gaussian. At H = 16 (sigma
    0.35) that sum is 1.18, and 125 figures of 1,280 images were read otherwise; at H = 32 and above none."""

    def weights(length: int) -> np.ndarray:
        distance = np.subtract.outer(np.arange(length), np.arange(length))
        return np.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

    return weights(images.shape[1]) @ images @ weights(images.shape[2])


def _fit(share: np.ndarray, color: str) -> Figure:
    """The figure that covers this share of each pixel (H, W)."""
    side = len(share)
    # A little beyond 0 and 1, so that noise does not make figures larger or smaller.
    share = np.clip(share, -0.3, 1.3)
    rows, columns = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
    top, bottom, left, right = rows[0] - 1, rows[-1] + 2, columns[0] - 1, columns[-1] + 2
    patch = np.pad(share, 1)[top + 1 : bottom + 1, left + 1 : right + 1]
    area = max(float(patch.sum()), 1.0)  # what is brighter than the background counts as less than nothing
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
    return Figure(known, color, size, x / side, y / side, radius)


@dataclass(frozen=True)
class Match:
    """Whether a description is true of a scene, in each respect and in all of them."""

    objects: bool
    """The same pairs of colour and shape, each as often, and no others."""
    colors: bool
    shapes: bool
    sizes: bool
    """Of every object that is named; with those that are there, an object that is missing has none."""
    relations: bool
    """Those that are stated, and the places."""
    all: bool


NO_MATCH = Match(False, False, False, False, False, False)


def matches(description: Description, scene: Scene) -> Match:
    """Objects stand for the figures that make most of it true: colours and shapes first, then the rest."""
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


def _score(description: Description, assigned: Sequence[Figure | None]) -> tuple[int, int, bool, bool]:
    """What is true if `assigned` are the figures that the objects stand for: how many colours and shapes; how
    many of the other two respects; sizes; relations and places."""
    pairs = list(zip(description.objects, assigned, strict=True))
    hits = sum((n.color == f.color) + (n.shape == f.shape) for n, f in pairs if f)
    sizes = all(f is not None and n.size in (None, f.size) for n, f in pairs)
    relations = all(
        (a := assigned[i]) is not None and (b := assigned[j]) is not None and is_related(a, relation, b)
        for i, relation, j in description.relations
    ) and all((a := assigned[i]) is not None and is_at(a, place) for i, place in description.places)
    return hits, sizes + relations, sizes, relations


def scene_accuracy(descriptions: Sequence[Description], scenes: Sequence[Scene]) -> dict[str, float]:
    """Text to image: the share of scenes of which their description is true, in each respect of a `Match`.
    "relations" counts only descriptions that state a relation or a place, and is left out if none does."""
    return _shares(descriptions, [matches(d, s) for d, s in zip(descriptions, scenes, strict=True)])


def caption_truth(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Captioning: the share of captions that are "parsed", and the share that is true of its scene in each
    respect of a `Match`: "all" is one that names every object and says nothing false. What cannot be parsed
    is true in none; "relations" as in `scene_accuracy`."""
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
