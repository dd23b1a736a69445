"""Text as language models have it: rotary positions and their scaling, the tied head, a sliding window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from causalfusion.errors import check, check_values

NUM_MARKERS = 5
"""Markers of texts and images: the last ids of a vocabulary (`codec.tokenizer.Markers`)."""
ScalingKind = Literal["none", "linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """How rotary frequencies of text are stretched to sequences longer than those of the first training.

    A frequency's turns are how often it turns round on `trained_length` positions.
    """

    kind: ScalingKind = "none"
    """linear: all frequencies divided by `factor`; dynamic: a base that grows with the sequence; yarn,
    llama3: slow frequencies divided, fast ones kept; longrope: a divisor for each frequency."""
    factor: float = 1.0
    """How much longer sequences become."""
    trained_length: int = 0
    """Positions of the first training; not used by `linear`."""
    slow: float = 1.0
    """yarn, llama3: turns up to which a frequency is divided."""
    fast: float = 32.0
    """yarn, llama3: turns from which a frequency is kept."""
    whole: bool = True
    """yarn: the range between slow and fast begins and ends at whole frequencies."""
    attention: float = 1.0
    """yarn, longrope: factor on cosines and sines."""
    short: tuple[float, ...] = ()
    """longrope: divisors of the frequencies, for sequences up to `trained_length`."""
    long: tuple[float, ...] = ()
    """longrope: those for longer sequences."""

    def __post_init__(self) -> None:
        check_values(self, "scaling")
        name = "model.language.scaling."
        check(self.factor > 0, name + "factor", self.factor, "a positive number")
        check(self.attention > 0, name + "attention", self.attention, "a positive number")
        needed = self.kind not in ("none", "linear")
        least = 1 if needed else 0
        fits = least <= self.trained_length <= 100_000_000
        check(fits, name + "trained_length", self.trained_length, f"{least} to 100000000")
        check(0 < self.slow < self.fast, name + "slow", self.slow, f"above 0 and below fast, {self.fast}")
        fits = (self.kind == "longrope") == bool(self.short) and len(self.short) == len(self.long)
        check(fits, name + "short", f"{len(self.short)} numbers", "as many as in long, for longrope alone")
        check(all(f > 0 for f in (*self.short, *self.long)), name + "short", "", "positive numbers")

    @property
    def depends_on_length(self) -> bool:
        """True if the frequencies of a short sequence are not those of a long one."""
        return self.kind in ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Text positions and the text head of a language model."""

    positions: Literal["learned", "rope"] = "learned"
    """A learned table of text positions, or rotary embedding, under which all tokens of an image have one
    place in the text and their own coordinates are added."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies; numbers i and i + H/2 of a head turn together."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    tied: bool = False
    """The output layer of text uses the weights of its embedding."""
    markers: Literal["vocabulary", "own"] = "vocabulary"
    """The last tokens of the vocabulary, which mark texts and images, share its embedding; or, as a language
    model has none, they have an embedding of their own."""
    longest: int = 0
    """Text places of a language model that learned to draw, where model.max_text_tokens is the room for text
    beside images; 0: model.max_text_tokens."""
    window: int = 0
    """Text places that a token sees, its own included; 0: all before it."""
    window_from: int = 0
    """First block with that window; earlier ones see all."""

    def __post_init__(self) -> None:
        check_values(self, "language")
        check(self.rope_base > 1, "model.language.rope_base", self.rope_base, "a number above 1")
        check(0 <= self.window <= 100_000_000, "model.language.window", self.window, "0 to 100000000")
        check(0 <= self.longest <= 100_000_000, "model.language.longest", self.longest, "0 to 100000000")
        first = self.window_from
        check(0 <= first <= 1_000, "model.language.window_from", first, "0 to 1000")
        fits = self.positions == "rope" or self.scaling == ScalingConfig()
        check(fits, "model.language.positions", self.positions, "rope, where model.language.scaling is set")

    def window_of(self, layer: int) -> int:
        """The window of a block; 0: none."""
        return self.window if layer >= self.window_from else 0
