"""A result card: figures and everything that they depend on, as JSON for people and programs."""

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
    """Figures by their names."""
    samples: dict[str, Any]
    """The images measured: origin, number, shape and hash; for generated ones also checkpoint, labels, seed
    and all sample settings."""
    references: list[dict[str, Any]]
    """The reference in each feature space: name, fingerprints, summary of its statistics."""
    features: list[dict[str, Any]]
    """Name and fingerprint of each feature space."""
    preset: dict[str, Any] | None = None
    """Name of the preset, and its settings that were changed; None without a preset."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reason for each measure that was not possible."""
    warnings: list[str] = field(default_factory=list)
    """Reasons to distrust the figures."""
    run: dict[str, Any] = field(default_factory=dict)
    """Machine, versions, time: facts that the figures should not depend on."""

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
        """Name of the samples."""
        return str(self.samples.get("name", "?"))


@dataclass(frozen=True, kw_only=True)
class _ReferenceFacts:
    """Facts that every reference on a card has, besides others."""

    name: str
    features: str
    fingerprint: str = ""
    mean_norm: float = 0.0
    covariance_trace: float = 0.0
    statistics_hash: str = ""


def load_card(path: Path) -> Card:
    """The card in a file or in the folder of an evaluation. Raises UserError if it is missing or damaged."""
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
    """Raises UserError unless the facts that `kind` has are complete and of its types."""
    known = {field.name for field in fields(kind)}
    from_dict(kind, {name: value for name, value in facts.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class _FeatureFacts:
    """Facts that every feature space on a card has."""

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _SampleFacts:
    """Facts that the samples on a card have, besides others."""

    name: str = "?"
    count: int = 0
    hash: str = ""


def _check_counts(card: Card) -> None:
    for name, figure in card.figures.items():
        check(0 < figure.count < 2**53, f"{name}: count", figure.count, "a number of images")


def figure_rows(card: Card) -> list[tuple[str, str, str]]:
    """(name, value, interval or standard error) of every figure, as text."""
    return [(name, format_value(figure.value), uncertainty(figure)) for name, figure in card.figures.items()]


def uncertainty(figure: Figure) -> str:
    """The interval of a figure, or its standard error, as text; empty where it has neither."""
    if figure.low is not None and figure.high is not None:
        return f"{format_value(figure.low)} .. {format_value(figure.high)}"
    return "" if figure.standard_error is None else f"± {format_value(figure.standard_error)}"
