"""A report: one HTML page that carries its pictures within itself."""

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
    """A PNG, embedded."""
    table: Sequence[Sequence[str]] = ()
    """Rows of cells, the first row the heading."""


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    introduction: Sequence[str]
    headline: Sequence[Fact]
    """The few figures that a reader should see first."""
    sections: Sequence[Section]
    fact_tables: Mapping[str, Sequence[Fact]]
    """Tables of settings and figures at the end, by title."""
    commands: Sequence[str]
    """What to type to make it again."""
    footer: str = field(default="")


def render(report: Report) -> str:
    """The page. All texts are plain: what looks like HTML in them is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["data_uri"] = _data_uri
    source = (resources.files("causalfusion") / "templates" / "report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(vars(report))


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
