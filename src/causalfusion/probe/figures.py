"""`probe.json`: what was measured, each figure kept as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from causalfusion.config.serialize import from_dict, read_object, to_dict
from causalfusion.errors import UserError, check
from causalfusion.files import write_whole
from causalfusion.probe.request import Kind

FILE = "probe.json"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The accuracy of one probe."""

    kind: Kind
    layer: int
    level: str
    """clean, or the noise level."""
    option: int
    """knn: neighbours; attentive: steps; linear: 0."""
    accuracy: float
    """Share of the held-out images whose class is right."""
    low: float
    high: float
    """Wilson's 95 % interval of the accuracy."""
    validation: float
    """The same share of the validation images, which are part of the training images; choices go by it."""
    chosen: float
    """The setting that was chosen on the validation images: penalty, learning rate."""
    images: int
    """Held-out images."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "low", "high", "validation"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share in [0, 1]")

    @property
    def key(self) -> str:
        return key_of(self.kind, self.layer, self.level, self.option)

    def in_words(self) -> str:
        return f"layer {self.layer}, {self.level}: {self.accuracy:.1%} ({self.low:.1%} to {self.high:.1%})"


def key_of(kind: Kind, layer: int, level: str, option: int) -> str:
    return f"{kind} {option}, layer {layer}, {level}"


def best_of(figures: Iterable[Figure], kind: Kind) -> Figure:
    """The figure of the layer and level that are best on validation images; of equals, the earliest layer."""
    return min(
        (one for one in figures if one.kind == kind), key=lambda one: (-one.validation, one.layer, one.level)
    )


@dataclass(frozen=True, kw_only=True)
class _ProbeFile:
    facts: dict[str, str | int]
    figures: dict[str, Figure]


class KnownFigures:
    """The figures in `probe.json`, of the same model and images."""

    def __init__(self, path: Path, facts: dict[str, str | int], found: dict[str, Figure]) -> None:
        self.path, self.facts, self.found = path, facts, found

    @classmethod
    def open(cls, out: Path, facts: dict[str, str | int]) -> KnownFigures:
        """Raises UserError for a file that is damaged, or was made with another model or other images."""
        path = out / FILE
        if not path.exists():
            known = cls(path, facts, {})
            known._write()  # before any feature, so that those in the folder are of these facts
            return known
        try:
            before = from_dict(_ProbeFile, read_object(path, "probe"), complete=True)
        except UserError as error:
            raise UserError(f"{path}: {error}; delete the folder, or give another --out") from None
        for name in {**facts, **before.facts}:  # some are told only where they are not the usual
            there, now = before.facts.get(name, "none"), facts.get(name, "none")
            if there != now:
                raise UserError(
                    f"{path} was measured with {name} {there!r}, now it is {now!r}; give another --out"
                )
        return cls(path, facts, before.figures)

    def add(self, figure: Figure) -> None:
        self.found[figure.key] = figure
        self._write()

    def _write(self) -> None:
        figures = {key: to_dict(figure) for key, figure in self.found.items()}
        write_whole(self.path, json.dumps({"facts": self.facts, "figures": figures}, indent=1) + "\n")
