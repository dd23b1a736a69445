"""A result card: figures, and all that they depend on, as JSON that a person and a program can read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from causalfusion.config.serialize import from_dict, read_json
from causalfusion.errors import UserError, check
from causalfusion.evaluate.measures.figure import Figure, format_value
from causalfusion.files import write_whole

FORMAT = "causalfusion-card-1"
FILE_NAME = "card.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    figures: dict[str, Figure]
    """By name, N included."""
    samples: dict[str, Any]
    """The images measured: where from, how many, their shape and hash; if they were generated, the
    checkpoint, labels, seed and all sample settings."""
    references: list[dict[str, Any]]
    """What they were compared with, one for each of the features: images, fingerprint, hash."""
    features: list[dict[str, Any]]
    """Name and fingerprint of each."""
    preset: dict[str, Any] | None = None
    """Named settings that were laid beneath, and which of them were changed."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Measures that were not possible, and why."""
    warnings: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    """Machine, versions, time: what the figures should not depend on."""

    def to_json(self) -> str:
        values = asdict(self)
        values["figures"] = {
            name: {key: value for key, value in figure.items() if value not in (None, "")}
            for name, figure in values["figures"].items()
        }
        return json.dumps({"format": FORMAT, **values}, indent=2) + "\n"

    def save(self, path: Path) -> None:
        write_whole(path, self.to_json())

    @property
    def title(self) -> str:
        """What was measured, in a few words."""
        return str(self.samples.get("name", "?"))


@dataclass(frozen=True, kw_only=True)
class _ReferenceFacts:
    """What every description of a reference has, beside other facts."""

    name: str
    features: str
    fingerprint: str = ""
    mean_norm: float = 0.0
    covariance_trace: float = 0.0
    statistics_hash: str = ""


def load_card(path: Path) -> Card:
    """A card from its file, or from the folder of an evaluation."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file} does not exist; expected a {FILE_NAME} made by evaluate")
    values = read_json(file, "card")
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError(f"{file} is not a result card ({FORMAT}); expected one made by evaluate")
    try:
        card = from_dict(Card, values)
        for reference in card.references:
            _check_facts(_ReferenceFacts, reference)
        for features in card.features:
            _check_facts(_FeatureFacts, features)
        _check_facts(_SampleFacts, card.samples)
        _check_counts(card)
    except UserError as error:
        raise UserError(f"{file} is not a whole result card ({error}); make it anew") from None
    for name, figure in card.figures.items():
        if figure.name != name:
            raise UserError(f"{file}: {name} says of itself that it is {figure.name}; the card was changed")
    return card


def _check_facts(kind: type, facts: dict[str, Any]) -> None:
    """Those facts that `kind` knows."""
    known = {one.name for one in fields(kind)}
    from_dict(kind, {name: value for name, value in facts.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class _FeatureFacts:
    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _SampleFacts:
    """What `samples` has, beside other facts."""

    name: str = "?"
    count: int = 0
    hash: str = ""


def _check_counts(card: Card) -> None:
    for name, figure in card.figures.items():
        check(0 < figure.count < 2**53, f"{name}: count", figure.count, "a number of images")


def figure_rows(card: Card) -> list[tuple[str, str, str]]:
    """(name, value, interval or standard error) of every figure."""
    return [(name, format_value(figure.value), uncertainty(figure)) for name, figure in card.figures.items()]


def uncertainty(figure: Figure) -> str:
    if figure.low is not None and figure.high is not None:
        return f"{format_value(figure.low)} .. {format_value(figure.high)}"
    return "" if figure.standard_error is None else f"± {format_value(figure.standard_error)}"
