"""Gradio, an optional package, imported in one place. Raises UserError, when it is imported, where it is not
installed."""

from __future__ import annotations

from causalfusion.errors import UserError

try:
    import gradio as gr  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError(
        f"the page needs the package gradio ({error}); install it: "
        "pip install 'causalfusion[app]' -c constraints.txt"
    ) from None

__all__ = ["gr"]
