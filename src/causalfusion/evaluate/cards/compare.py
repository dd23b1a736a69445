"""Comparison of result cards: different figures and settings, and the best card of each figure."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causalfusion.config.serialize import flat
from causalfusion.errors import UserError, printable
from causalfusion.evaluate.cards.card import Card
from causalfusion.evaluate.measures.figure import WITHOUT_REFERENCE, Figure, count_word, format_value

SAME_STATISTICS = 1e-3
"""Relative difference of a reference's summary up to which rounding on another machine explains it."""
EQUAL = 1e-9
"""Relative difference of two figures up to which rounding explains it."""
_NOT_COMPARED = ("name", "hash", "seconds", "file", "statistics_hash", "mean_norm", "covariance_trace")
"""Facts that differ between any two evaluations, or follow from other facts."""
_COMPARED_OF_RUN = ("device", "processes", "precision", "versions")
"""Facts of a run that may explain a difference."""


@dataclass(frozen=True)
class Row:
    """One figure in all cards."""

    name: str
    figures: tuple[Figure | None, ...]
    """The figure of each card; None where a card lacks it."""
    best: int | None
    """Place of the best card; None where there is none."""
    verdict: str
    """Name of the best card, or the reason why there is none."""

    def cells(self) -> list[str]:
        """Text for each card: the value, and its difference from the first card's."""
        first = self.figures[0]
        own_counts = len({figure.count for figure in self.figures if figure}) > 1
        cells = []
        for place, figure in enumerate(self.figures):
            if figure is None:
                cells.append("-")
                continue
            text = format_value(figure.value)
            if own_counts:
                text += f" (N {count_word(figure.count)})"
            if place and first is not None:
                change = 0.0 if _equal(figure, first) else figure.value - first.value
                text += f" ({'+' if change >= 0 else '-'}{format_value(abs(change))})"
            cells.append(text)
        return cells


@dataclass(frozen=True)
class Comparison:
    names: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    """Name and values, one for each card, of every setting that differs between cards."""
    notes: tuple[str, ...]
    """Warnings of the cards, and pairs of cards that measured the same images."""


def compare_cards(cards: Sequence[Card], names: Sequence[str]) -> Comparison:
    """Compare cards; `names` stand for them. Raises UserError for fewer than two."""
    if len(cards) < 2:
        raise UserError(f"there is {len(cards)} card to compare; expected two or more")
    bases = dict.fromkeys(figure.base for card in cards for figure in card.figures.values())
    rows = [_row(card_figures, cards, names) for base in bases for card_figures in _variants(base, cards)]
    notes = [f"{name}: {line}" for name, card in zip(names, cards, strict=True) for line in card.warnings]
    hashes: dict[object, str] = {}
    for name, card in zip(names, cards, strict=True):
        images = card.samples.get("hash")
        if images in hashes:
            notes.append(f"{name} and {hashes[images]} measured the same images")
        hashes.setdefault(images, name)
    return Comparison(tuple(names), tuple(rows), tuple(_differences(cards)), tuple(notes))


def _variants(base: str, cards: Sequence[Card]) -> list[tuple[Figure | None, ...]]:
    """The figures with this base name, as rows with one figure of each card."""
    found = [[f for f in card.figures.values() if f.base == base] for card in cards]
    most = max(len(figures) for figures in found)
    return [tuple(figures[i] if i < len(figures) else None for figures in found) for i in range(most)]


def _row(figures: tuple[Figure | None, ...], cards: Sequence[Card], names: Sequence[str]) -> Row:
    present = [(place, figure) for place, figure in enumerate(figures) if figure is not None]
    counts = {figure.count for _, figure in present}
    name = present[0][1].name if len(counts) == 1 else present[0][1].base
    if len(present) < 2:
        return Row(name, figures, None, "in one card only")
    reason = why_not_ranked([figure for _, figure in present], [cards[place] for place, _ in present])
    if reason:
        return Row(name, figures, None, f"not ranked: {reason}")
    sign = 1 if present[0][1].lower_is_better else -1
    place, best = min(present, key=lambda item: sign * item[1].value)
    others = [(other, figure) for other, figure in present if other != place]
    if all(_equal(figure, best) for _, figure in others):
        return Row(name, figures, None, "equal")
    near = [names[other] for other, figure in others if overlap(best, figure)]
    verdict = f"{names[place]} is best"
    if near:
        verdict = f"{names[place]}; within the interval: {', '.join(near)}"
    elif best.interval is None:
        verdict += " (no interval)"
    return Row(name, figures, None if near else place, verdict)


def _equal(a: Figure, b: Figure) -> bool:
    """True for values that differ by rounding alone, as with other numbers of processes."""
    return math.isclose(a.value, b.value, rel_tol=EQUAL)


def overlap(a: Figure, b: Figure) -> bool:
    """True if the 95 % intervals of two figures overlap; a figure without one counts as a point."""
    (low_a, high_a), (low_b, high_b) = (figure.interval or (figure.value,) * 2 for figure in (a, b))
    if a.interval is None and b.interval is None:
        return False
    return low_a <= high_b and low_b <= high_a


def why_not_ranked(figures: Sequence[Figure], cards: Sequence[Card]) -> str:
    """Reason why the figures of these cards cannot be ranked; empty if they can."""
    counts = [figure.count for figure in figures]
    if len(set(counts)) > 1:
        return f"N differs ({', '.join(map(count_word, counts))})"
    if len({figure.features_fingerprint for figure in figures}) > 1:
        return "the features differ"
    references = {_compared_with(*pair) for pair in zip(figures, cards, strict=True)}
    if None in references:
        return "the reference is not known; run the study again, which writes its cards anew"
    if len(references) > 1:
        return "the reference differs"
    if figures[0].reference and not _same_statistics(
        [_reference(*pair) for pair in zip(figures, cards, strict=True)]
    ):
        return "the reference has the same files, but other statistics"
    return ""


def _compared_with(figure: Figure, card: Card) -> str | None:
    """Fingerprint of the images that a figure compares with; empty for a measure without any. Cards of
    earlier versions may have it beside the figure, or not at all: None."""
    if figure.reference or figure.quantity in WITHOUT_REFERENCE:
        return figure.reference
    return _reference(figure, card).get("fingerprint")


def _reference(figure: Figure, card: Card) -> dict[str, Any]:
    """Facts about the reference of a figure; empty if the card has none."""
    return next((r for r in card.references if r["features"] == figure.features), {})


def _same_statistics(references: Sequence[dict[str, Any]]) -> bool:
    """True for references with equal statistics, up to rounding on other machines, where they tell any."""
    references = [reference for reference in references if "statistics_hash" in reference]
    first = references[0] if references else {}
    return all(
        reference.get("statistics_hash") == first.get("statistics_hash")
        or all(
            math.isclose(reference.get(key, math.nan), first.get(key, math.nan), rel_tol=SAME_STATISTICS)
            for key in ("mean_norm", "covariance_trace")
        )
        for reference in references
    )


def _differences(cards: Sequence[Card]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and values of every setting that differs between cards."""
    facts = [_facts(card) for card in cards]
    names = dict.fromkeys(name for card_facts in facts for name in card_facts)
    rows = [(name, tuple(_setting_text(card_facts.get(name)) for card_facts in facts)) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _facts(card: Card) -> dict[str, Any]:
    """Everything that figures may depend on, by full names."""
    facts: dict[str, Any] = {"preset": (card.preset or {}).get("name")}
    facts |= flat({key: value for key, value in card.samples.items() if key not in _NOT_COMPARED})
    for reference in card.references:
        own = {
            key: value
            for key, value in reference.items()
            if key not in (*_NOT_COMPARED, "features") or key == "name"
        }
        facts |= flat(own, f"reference[{reference['features']}].")
    facts |= {f"features[{f['name']}]": f["fingerprint"] for f in card.features}
    facts |= flat({key: value for key, value in card.run.items() if key in _COMPARED_OF_RUN})
    return facts


def _setting_text(value: object) -> str:
    """The value of a setting as text of at most 40 characters."""
    if value is None:
        return "-"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def to_markdown(comparison: Comparison) -> str:
    """The comparison as tables in Markdown."""
    lines = _markdown_table(
        ["figure", *comparison.names, "best"],
        [[row.name, *_marked(row), row.verdict] for row in comparison.rows],
    )
    if comparison.differences:
        lines += [
            "",
            *_markdown_table(["setting", *comparison.names], [[n, *v] for n, v in comparison.differences]),
        ]
    lines += ["", *(f"- {_in_markdown(note)}" for note in comparison.notes)] if comparison.notes else []
    return "\n".join(lines) + "\n"


def _marked(row: Row) -> list[str]:
    """The row's cells, the best in bold."""
    return [f"**{cell}**" if place == row.best else cell for place, cell in enumerate(row.cells())]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(map(_in_markdown, header)), ["---"] * len(header)]
    lines += [[_in_markdown(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _in_markdown(text: str) -> str:
    """A text for a Markdown table, made safe: cards come from anywhere, so it stays on one line and cannot
    bring HTML, links or table cells."""
    text = html.escape(printable(text), quote=False)
    return re.sub(r"([|\[\]`])", r"\\\1", text)
