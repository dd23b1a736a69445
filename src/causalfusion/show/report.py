"""A report as one HTML page with its pictures embedded."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


@dataclass(frozen=True)
class Section:
    title: str
    paragraphs: Sequence[str]
    picture: Path | None = None
    """A PNG to embed."""
    table: Sequence[Sequence[str]] = ()
    """Rows of cells; the first is the heading."""


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    introduction: Sequence[str]
    headline: Sequence[Fact]
    """The most important figures, shown first."""
    sections: Sequence[Section]
    fact_tables: Mapping[str, Sequence[Fact]]
    """Tables of settings and figures, by title, shown last."""
    commands: Sequence[str]
    """Commands that reproduce the report."""
    footer: str = field(default="")


def render(report: Report) -> str:
    """The HTML of a report. HTML in its texts is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["data_uri"] = _data_uri
    source = (resources.files("causalfusion") / "templates" / "report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(vars(report))


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
