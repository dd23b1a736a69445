from __future__ import annotations

from pathlib import Path

from cyclopts import App

app = App(name="demo", result_action="return_value")


@app.default
def demo(*, out: Path = Path("runs/demo"), quick: bool = False) -> int:
    """Train a small model on handwritten digits and show what it can do: pictures and report.html.

    Parameters
    ----------
    quick
        A short run that only shows that everything works.
    """
    from causalfusion.demo import run_demo

    run_demo(out, quick=quick)
    return 0
