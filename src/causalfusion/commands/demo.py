from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="demo", result_action="return_value")


@app.default
def demo(*, out: Path = Path("runs/demo"), quick: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Train a small model on handwritten digits and show what it can do.

    Parameters
    ----------
    out
        Folder for the run, the pictures and report.html.
    quick
        A short run that only shows that everything works.
    """
    from causalfusion.demo.run import run_demo

    run_demo(out, quick=quick)
    return 0
