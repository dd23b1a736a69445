"""A small grammar of captions for scenes: written with `describe`, read back with `parse_caption`.

Both use the same templates, in which A, B and C are figures in the order in which the caption names them:

    A            "a small red circle"
    A@           its position in the image: "in the top left"
    A>B          the position of A relative to B, before B is named: "to the left of"
    A>B.it       the same where B is referred to as "it": "to its left"
    the.B        B named again: "the red circle"
    OPEN         nothing, or "there is", "a picture of", ...

Everything else in a template is a word of the caption.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from causalfusion.data.drawing import COLORS, SHAPES, Scene, SceneObject

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
IT_WORDS = {
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it",),
    "below": ("below it", "under it"),
}
PLACE_WORDS = {
    "top left": ("in the top left", "in the upper left"),
    "top": ("at the top", "near the top"),
    "top right": ("in the top right", "in the upper right"),
    "left": ("on the left", "on the left side"),
    "center": ("in the center", "in the middle"),
    "right": ("on the right", "on the right side"),
    "bottom left": ("in the bottom left", "in the lower left"),
    "bottom": ("at the bottom", "near the bottom"),
    "bottom right": ("in the bottom right", "in the lower right"),
}
OPENINGS = ("", "", "there is", "a picture of", "an image of", "the picture shows", "here is")
TEMPLATES = {
    1: ("OPEN A", "OPEN A A@", "OPEN A A@", "A@ is A", "A@ there is A"),
    2: (
        "OPEN A and B",
        "two shapes: A and B",
        "OPEN A A>B B",
        "OPEN A A>B B",
        "A is A>B B",
        "OPEN A with B B>A.it",
        "OPEN A and B B>A.it",
        "OPEN A A@ and B B@",
        "OPEN A A@ and B B>A.it",
    ),
    3: (
        "OPEN A, B and C",
        "three shapes: A, B and C",
        "OPEN A A>B B, and C C>B the.B",
        "OPEN A A>B B, and C C>A the.A",
        "A is A>B B, and C is C>B the.B",
        "A is A>B B, and C is C>A the.A",
        "OPEN A with B B>A.it and C C>A.it",
        "OPEN A A@, B B@ and C C@",
        "OPEN A A@ with B B>A.it and C C>A.it",
    ),
}
"""Templates by number of figures; one that is listed twice is drawn twice as often."""

CLEAR_OFFSET, TRUE_OFFSET = 0.16, 0.08
"""Least offset between two figures for captions to state a relation, and for a relation to count as true; in
units of the image's side."""
CLEAR_ZONES = ((0.0, 0.37), (0.44, 0.56), (0.63, 1.0))
"""Ranges of a figure's centre for captions to name each row or column of the 3x3 places."""
TRUE_ZONES = ((0.0, 0.42), (0.38, 0.62), (0.58, 1.0))
"""Wider ranges, in which a stated row or column counts as true."""


class Named(NamedTuple):
    """One figure as a caption names it; a size of None is not stated."""

    size: str | None
    color: str
    shape: str


@dataclass(frozen=True)
class Description:
    """The meaning of a caption."""

    objects: tuple[Named, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    """(i, "left", j): object i lies to the left of object j."""
    places: tuple[tuple[int, str], ...] = ()
    """(i, "top left"): object i lies in the top left."""


def is_related(a: SceneObject, relation: str, b: SceneObject, offset: float = TRUE_OFFSET) -> bool:
    """True if a lies to the left or right of, above or below b (`relation`) by at least `offset`."""
    right, down = b.x - a.x, b.y - a.y
    return {"left": right, "right": -right, "above": down, "below": -down}[relation] >= offset


def is_at(figure: SceneObject, place: str, zones: tuple[tuple[float, float], ...] = TRUE_ZONES) -> bool:
    """True if the figure's centre lies in `place`, one of the nine PLACE_WORDS."""
    column = zones[0 if "left" in place else 2 if "right" in place else 1]
    row = zones[0 if "top" in place else 2 if "bottom" in place else 1]
    return column[0] <= figure.x <= column[1] and row[0] <= figure.y <= row[1]


def clear_place(figure: SceneObject) -> str | None:
    """The one of the nine places in which a figure clearly lies; None between two of them."""
    row = column = None
    for name, (low, high) in zip((0, 1, 2), CLEAR_ZONES, strict=True):
        row = name if low <= figure.y <= high else row
        column = name if low <= figure.x <= high else column
    return None if row is None or column is None else tuple(PLACE_WORDS)[3 * row + column]


class Element(NamedTuple):
    """One element of a template: its kind, and the figures that it refers to."""

    kind: str
    """One of "object", "place", "relation", "it", "again", "open", "word"."""
    first: int
    second: int
    text: str


@cache
def elements(template: str) -> tuple[Element, ...]:
    """The elements of a template, in order."""
    found = []
    for piece in re.findall(r"[,:]|[^ ,:]+", template):
        if match := re.fullmatch(r"(the\.)?([A-C])(@)?(?:>([A-C]))?(\.it)?", piece):
            again, first, place, second, it = match.groups()
            kind = (
                "again" if again else "place" if place else "it" if it else "relation" if second else "object"
            )
            found.append(Element(kind, ord(first) - 65, ord(second or "A") - 65, ""))
        else:
            found.append(Element("open" if piece == "OPEN" else "word", 0, 0, piece))
    return tuple(found)


def describe(scene: Scene, generator: np.random.Generator) -> str:
    """A caption that names every figure of a scene and states only what is clearly true. The scene is one of
    `Shapes`: one to three separate figures, no two of the same colour and shape."""

    def pick(options: Sequence[str]) -> str:
        return options[int(generator.random() * len(options))]

    figures = list(scene.figures)
    for i in range(len(figures) - 1, 0, -1):
        j = int(generator.random() * (i + 1))
        figures[i], figures[j] = figures[j], figures[i]
    places = [clear_place(figure) for figure in figures]
    while True:
        template = pick(TEMPLATES[len(figures)])
        if all(places[e.first] for e in elements(template) if e.kind == "place"):  # some need no place
            break
    said = []
    for kind, first, second, text in elements(template):
        figure = figures[first]
        if kind == "object":
            text = f"a {pick(SIZE_WORDS[figure.size])} {figure.color} {figure.shape}"
        elif kind == "again":
            text = f"the {figure.color} {figure.shape}"
        elif kind == "place":
            text = pick(PLACE_WORDS[places[first] or ""])
        elif kind in ("relation", "it"):
            clear = [r for r in RELATION_WORDS if is_related(figure, r, figures[second], CLEAR_OFFSET)]
            text = pick((IT_WORDS if kind == "it" else RELATION_WORDS)[pick(clear)])
        elif kind == "open":
            text = pick(OPENINGS)
        said.append(text if text in (",", ":", "") else " " + text)
    return "".join(said).lstrip()


def _any_of(words: dict[str, tuple[str, ...]] | tuple[str, ...]) -> str:
    """A regular expression that matches any of the words, the longest first."""
    options = words if isinstance(words, tuple) else tuple(w for group in words.values() for w in group)
    return "|".join(sorted(filter(None, options), key=len, reverse=True))


_FIGURE = f"(?:(?:{_any_of(SIZE_WORDS)}) )?(?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)})"
_TOKEN = re.compile(
    f"(?P<object>an? {_FIGURE})|(?P<again>the {_FIGURE})|(?P<place>{_any_of(PLACE_WORDS)})"
    f"|(?P<it>{_any_of(IT_WORDS)})|(?P<relation>{_any_of(RELATION_WORDS)})"
    "|(?P<word>[a-z]+|[,:])"
)
_OPEN = re.compile(f"(?P<open>{_any_of(OPENINGS)})(?= )")
_WORDS_OF_KIND = {"size": SIZE_WORDS, "place": PLACE_WORDS, "relation": RELATION_WORDS, "it": IT_WORDS}
_MEANING = {
    kind: {word: name for name, words in groups.items() for word in words}
    for kind, groups in _WORDS_OF_KIND.items()
}


@cache
def _templates_by_form() -> dict[tuple[str, ...], list[tuple[Element, ...]]]:
    """Templates by their form: the kinds of their elements, with words spelled out; with and without the
    opening."""
    found: dict[tuple[str, ...], list[tuple[Element, ...]]] = {}
    for template in dict.fromkeys(t for group in TEMPLATES.values() for t in group):
        pieces = elements(template)
        closed = tuple(e for e in pieces if e.kind != "open")
        for form in {pieces, closed}:
            found.setdefault(tuple(e.text if e.kind == "word" else e.kind for e in form), []).append(form)
    return found


def parse_caption(text: str) -> Description | None:
    """The meaning of a caption, or None for a text that no template produces. Sizes may be left out, a full
    stop may end it, and case and extra spaces are ignored."""
    text = " ".join(text.lower().split()).removesuffix(".").rstrip()
    form, words, end = [], [], 0
    while end < len(text):
        match = (not end and _OPEN.match(text)) or _TOKEN.match(text, end)
        if match is None:
            return None
        kind = match.lastgroup or ""
        form.append(match.group() if kind == "word" else kind)
        words.append(match.group())
        end = match.end()
        if text[end : end + 1] == " ":
            end += 1
        elif end < len(text) and text[end] not in ",:":
            return None
    for template in _templates_by_form().get(tuple(form), ()):
        if (description := _understand(template, words)) is not None:
            return description
    return None


def _understand(template: tuple[Element, ...], words: list[str]) -> Description | None:
    """The meaning of a caption of this template; None if a figure that is named again is not the one to which
    the template refers."""
    objects = [_named(word) for e, word in zip(template, words, strict=True) if e.kind == "object"]
    relations, places = [], []
    for (kind, first, second, _), word in zip(template, words, strict=True):
        if kind == "again":
            again = _named(word)
            if again[1:] != objects[first][1:] or again.size not in (None, objects[first].size):
                return None
        elif kind == "place":
            places.append((first, _MEANING[kind][word]))
        elif kind in ("relation", "it"):
            relations.append((first, _MEANING[kind][word], second))
    return Description(tuple(objects), tuple(relations), tuple(places))


def _named(words: str) -> Named:
    *size, color, shape = words.split()[1:]
    return Named(_MEANING["size"][size[0]] if size else None, color, shape)
