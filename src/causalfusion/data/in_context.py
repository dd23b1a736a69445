"""Few-shot documents on scenes of one figure: some examples of a rule that nothing names, then a query.

Two kinds of rules:

    pairs    a transformation: each example is an image, and what the transformation makes of it
    words    the meaning of a made-up word, a colour or a shape: each example is a caption, and its image

Every document is determined by (seed, split, epoch, index). Its query is one more example, so that a document
of four examples is one of none, of one, of two and of three as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from causalfusion.config import SplitName
from causalfusion.config.settings import TaskName
from causalfusion.config.sizes import Fit
from causalfusion.data.document_source import DocumentExample
from causalfusion.data.drawing import COLORS, SHAPES, SIZES, Scene, SceneObject, draw_scene
from causalfusion.data.shapes import BORDER, MIN_SIDE
from causalfusion.errors import UserError
from causalfusion.files import hash_of
from causalfusion.rng import derive_seed

RuleKind = Literal["recolor", "reshape", "resize", "move", "mirror", "color word", "shape word"]
VALUES: dict[RuleKind, tuple[str, ...]] = {
    "recolor": tuple(COLORS),
    "reshape": SHAPES,
    "resize": tuple(SIZES),
    "move": ("left", "right", "up", "down"),
    "mirror": ("left and right", "top and bottom"),
    "color word": tuple(COLORS),
    "shape word": SHAPES,
}
"""What a rule turns figures into, where it moves them, what it mirrors their place by, or what its word
means. Figures stay upright."""
KINDS: dict[str, tuple[RuleKind, ...]] = {
    "pairs": ("recolor", "reshape", "resize", "move", "mirror"),
    "words": ("color word", "shape word"),
}
DISTANCE = 0.3
"""Way of a figure that moves, in units of the image's side."""
NEAR = 0.1
"""Largest distance between two places, along each axis, that count as the same."""
LENGTH = 200_000
SIDE = 24
"""Side of the images where none is given."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_UNSEEN_SHARE = 8
"""One in so many made-up words occurs in no document of the split `train`."""


@dataclass(frozen=True)
class Rule:
    kind: RuleKind
    value: str
    word: str = ""
    """The made-up word."""

    @property
    def has_captions(self) -> bool:
        return self.kind in KINDS["words"]

    def apply(self, figure: SceneObject) -> SceneObject:
        """The figure under the transformation; for a word, one that it describes."""
        kind, value = self.kind, self.value
        if kind in ("recolor", "color word"):
            return replace(figure, color=value)
        if kind in ("reshape", "shape word"):
            return replace(figure, shape=value)
        if kind == "resize":
            (low, high), (least, most) = SIZES[figure.size], SIZES[value]
            radius = least + (figure.radius - low) / (high - low) * (most - least)
            return replace(figure, size=value, radius=radius)
        if kind == "mirror":
            return replace(figure, x=1 - figure.x) if "left" in value else replace(figure, y=1 - figure.y)
        x, y = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[value]
        return replace(figure, x=figure.x + x * DISTANCE, y=figure.y + y * DISTANCE)

    def caption(self, figure: SceneObject) -> str:
        color, shape = (self.word, figure.shape) if self.kind == "color word" else (figure.color, self.word)
        return f"a {figure.size} {color} {shape}"


@dataclass(frozen=True)
class Shot:
    """One example of a rule."""

    given: SceneObject | None
    """The figure before the transformation; None: the caption is given."""
    caption: str
    answer: SceneObject


@dataclass(frozen=True)
class Episode:
    """A document's meaning."""

    rule: Rule
    shots: tuple[Shot, ...]
    """The examples, and the query, which is the last."""


def same_figure(a: SceneObject, b: SceneObject, *, placed: bool = True) -> bool:
    """True if two figures have the same colour, shape and size and, if `placed`, about the same place."""
    alike = (a.color, a.shape, a.size) == (b.color, b.shape, b.size)
    return alike and (not placed or max(abs(a.x - b.x), abs(a.y - b.y)) <= NEAR)


class InContext:
    """The documents of one split. Made-up words of `validation` and `test` are in no document of `train`."""

    name = "in_context"

    def __init__(
        self,
        split: SplitName = "train",
        *,
        task: TaskName = "both",
        examples: int = 4,
        seed: int = 0,
        fit: Fit | None = None,
        length: int = LENGTH,
    ) -> None:
        """`fit`: the size of the images."""
        if split not in get_args(SplitName) or split == "compositional":
            raise UserError(f"in_context has no split {split!r}; expected train, validation or test")
        fit = fit or Fit(SIDE, SIDE)
        if min(fit.height, fit.width) < MIN_SIDE:
            raise UserError(
                f"data.image_size is {fit.width}x{fit.height}; expected at least {MIN_SIDE} for in_context"
            )
        self.split, self.task, self.examples, self.seed = split, task, examples, seed
        self._size, self._length = (fit.height, fit.width), length

    def __len__(self) -> int:
        return self._length

    def read(self, index: int, epoch: int = 0) -> DocumentExample:
        elements = list[str | np.ndarray]()
        for shot in self.episode(index, epoch).shots:
            elements += [*self.asked(shot), self.draw(shot.answer)]
        return DocumentExample(tuple(elements))

    def texts(self, index: int) -> tuple[str, ...]:
        return tuple(shot.caption for shot in self.episode(index).shots if shot.given is None)

    def images_of(self, index: int) -> int:
        return sum(1 + (shot.given is not None) for shot in self.episode(index).shots)

    def fingerprint(self) -> str:
        first = [repr(self.episode(index)) for index in range(min(3, self._length))]
        return hash_of([self.name, self.split, self.task, self.examples, self.seed, *self._size, first])

    def draw(self, figure: SceneObject) -> np.ndarray:
        """(H, W, 3) uint8."""
        return draw_scene(Scene((figure,)), *self._size)

    def asked(self, shot: Shot) -> list[str | np.ndarray]:
        """The elements before a shot's answer."""
        return [shot.caption if shot.given is None else self.draw(shot.given)]

    def episode(self, index: int, epoch: int = 0) -> Episode:
        """A document's rule and figures. The query is clear: the given figure itself, or the answer to an
        example with a caption, would be a wrong answer. Raises IndexError."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        seed = derive_seed(self.seed, self.name, self.split, epoch, index)
        random = np.random.Generator(np.random.Philox(seed))
        task = self.task if self.task != "both" else _pick(("pairs", "words"), random)
        kind = _pick(KINDS[task], random)
        rule = Rule(kind, _pick(VALUES[kind], random), self._word(random) if task == "words" else "")
        shots = [_shot(rule, random) for _ in range(self.examples + 1)]
        while not _is_clear(shots):
            shots[-1] = _shot(rule, random)
        return Episode(rule, tuple(shots))

    def _word(self, random: np.random.Generator) -> str:
        while True:
            word = "".join(_pick(letters, random) for letters in (_CONSONANTS, _VOWELS) * 2)
            if is_unseen(word) != (self.split == "train"):
                return word


def is_unseen(word: str) -> bool:
    """True for a made-up word that is in no document of the split `train`."""
    return derive_seed(0, "unseen word", word) % _UNSEEN_SHARE == 0


def _pick(options: Sequence, random: np.random.Generator):
    return options[int(random.random() * len(options))]


def _shot(rule: Rule, random: np.random.Generator) -> Shot:
    """A random example. Its two figures lie inside the image."""
    size = _pick(tuple(SIZES), random)
    low, high = SIZES[size]
    radius = low + random.random() * (high - low)
    edge = BORDER + (SIZES["large"][1] if rule.kind == "resize" else radius)
    least, most = np.full(2, edge), np.full(2, 1 - edge)
    if rule.kind == "move":
        axis = 0 if rule.value in ("left", "right") else 1
        if rule.value in ("left", "up"):
            least[axis] += DISTANCE
        else:
            most[axis] -= DISTANCE
    x, y = (least + random.random(2) * (most - least)).tolist()
    figure = SceneObject(_pick(SHAPES, random), _pick(tuple(COLORS), random), size, x, y, radius)
    answer = rule.apply(figure)
    return Shot(None, rule.caption(answer), answer) if rule.has_captions else Shot(figure, "", answer)


def _is_clear(shots: Sequence[Shot]) -> bool:
    """True if the query, the last of the shots, cannot be answered by copying."""
    *before, query = shots
    if query.given is None:
        return not any(same_figure(shot.answer, query.answer, placed=False) for shot in before)
    moved = max(abs(query.given.x - query.answer.x), abs(query.given.y - query.answer.y)) >= 2 * NEAR
    return moved or not same_figure(query.given, query.answer, placed=False)
