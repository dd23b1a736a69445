from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="compare", result_action="return_value")


@app.default
def compare(cards: list[Path], /, *, markdown: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Compare result cards side by side.

    Shows metrics with their differences to the first card, the best of each if they can be ranked, and the
    settings that differ. Metrics with different N, reference or features are not ranked; those whose 95 %
    intervals overlap count as equal.

    Parameters
    ----------
    cards
        Files that `evaluate` wrote, or the folders with them.
    markdown
        Print tables in Markdown.
    """
    from causalfusion.evaluate.cards.card import load_card
    from causalfusion.evaluate.cards.compare import compare_cards, to_markdown
    from causalfusion.evaluate.cards.terminal import card_names, show_comparison

    comparison = compare_cards([load_card(path) for path in cards], card_names(cards))
    if markdown:
        print(to_markdown(comparison), end="")
    else:
        show_comparison(comparison)
    return 0
