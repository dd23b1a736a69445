"""Result cards and comparisons, printed on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from causalfusion.errors import printable
from causalfusion.evaluate.cards.card import FILE_NAME, Card, figure_rows
from causalfusion.evaluate.cards.compare import Comparison


def _plain(text: str) -> str:
    """A text of a card, which may come from anywhere, with markup and control characters written out."""
    return escape(printable(text))


def show_card(card: Card, out: Path) -> None:
    """Print the figures on stdout and warnings on stderr; `out` is the folder of the card."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("figure", "value", "95 % interval, or ± its standard error"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for row in figure_rows(card):
        table.add_row(*map(_plain, row))
    against = ", ".join(dict.fromkeys(reference["name"] for reference in card.references)) or "nothing"
    console.print(
        _plain(f"{card.samples.get('count', 0):,} images of {card.title} against {against}"), highlight=False
    )
    console.print(table)
    for line in card.warnings:
        print(f"warning: {printable(line)}", file=sys.stderr)
    console.print(_plain(f"{out / FILE_NAME} says all that these depend on"), highlight=False, soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """Print figures, then settings that differ on stdout; warnings of the cards on stderr."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("figure", *comparison.names, "best"):
        table.add_column(_plain(heading), overflow="fold", no_wrap=heading == "figure")
    for row in comparison.rows:
        cells = [_plain(cell) for cell in row.cells()]
        if row.best is not None:
            cells[row.best] = f"[bold green]{cells[row.best]}[/]"
        table.add_row(_plain(row.name), *cells, _plain(row.verdict))
    console.print(table)
    if comparison.differences:
        settings = Table(box=None, pad_edge=False)
        for heading in ("setting", *comparison.names):
            settings.add_column(_plain(heading), overflow="fold")
        for name, values in comparison.differences:
            settings.add_row(_plain(name), *map(_plain, values))
        console.print()
        console.print(settings)
    for note in comparison.notes:
        print(printable(note), file=sys.stderr)


def card_names(paths: Sequence[Path]) -> list[str]:
    """Short, distinct names of cards: the ends of the paths of their folders, or files, that tell them
    apart."""
    shown = [path.parent if path.name == FILE_NAME and path.parent != Path() else path for path in paths]
    shown = [path.resolve() if path.name in ("", "..") else path for path in shown]
    names = [path.name for path in shown]
    for length in range(2, max((len(path.parts) for path in shown), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = [str(Path(*path.parts[-length:])) for path in shown]
    return names if len(set(names)) == len(names) else [f"{name} ({i + 1})" for i, name in enumerate(names)]
