"""How the page looks: its colours, fonts of the system alone, and its styles."""

from __future__ import annotations

from typing import Any

from causalfusion.app.toolkit import gr

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
FONTS_OF_CODE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.cf-title h1 { margin: 0.2em 0 0; font-size: 1.7em; letter-spacing: -0.01em; }
.cf-title p { margin: 0.2em 0 0.4em; color: var(--body-text-color-subdued); }
.cf-tiles { display: grid; grid-template-columns: repeat(var(--cf-columns), minmax(0, 1fr)); gap: 14px;
  max-width: min(100%, 120px + 190px * var(--cf-columns)); margin: 0 auto; }
.cf-tile { margin: 0; padding: 6px; border-radius: 12px; cursor: pointer; border: 2px solid transparent; }
.cf-tile:hover { background: var(--background-fill-secondary); }
.cf-tile.cf-chosen { border-color: var(--color-accent); }
.cf-tile figcaption { text-align: center; font-size: 0.82em; padding-top: 4px;
  color: var(--body-text-color-subdued); }
.cf-picture { position: relative; width: 100%; border-radius: 8px; overflow: hidden;
  background: #fff; box-shadow: 0 0 0 1px var(--border-color-primary); }
.cf-picture img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; display: block; }
.cf-picture img.cf-crisp { image-rendering: pixelated; }
.cf-picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.cf-not-begun { fill: #dee2e8; }
.cf-in-progress { fill: rgba(240, 120, 20, 0.22); }
.cf-hint { text-align: center; margin: 0 0 8px; color: var(--body-text-color-subdued); }
.cf-painted { max-width: 460px; margin: 0 auto; }
.cf-painted canvas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0.65;
  cursor: crosshair; touch-action: none; }
.cf-tools { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; justify-content: center;
  padding-top: 10px; font-size: 0.9em; color: var(--body-text-color-subdued); }
.cf-tools button { font-size: 1em; font-weight: 500; margin: 0; padding: 4px 12px; border-radius: 8px;
  color: var(--body-text-color); border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); }
.cf-tools button.cf-on { border-color: var(--color-accent); color: var(--color-accent); }
.cf-tools label { display: inline-flex; gap: 6px; align-items: center; }
.cf-tools input { width: 90px; accent-color: var(--color-accent); color-scheme: light; }
.cf-empty { display: flex; align-items: center; justify-content: center; text-align: center;
  min-height: 260px; padding: 24px; border-radius: 12px; color: var(--body-text-color-subdued);
  border: 2px dashed var(--border-color-primary); }
.cf-words { min-height: 1.6em; text-align: center; }
.cf-words p { color: var(--body-text-color-subdued); font-size: 0.92em; margin: 0; }
.cf-caption textarea { font-size: 1.25em; }
"""
CHOOSE_TILE = """
element.addEventListener('click', (event) => {
  const tile = event.target.closest('.cf-tile');
  if (tile) trigger('click', { index: Number(tile.dataset.index) });
});
"""
"""Runs where the tiles are: the tile that is clicked is told to the server."""
FOLLOW_LINK = """
(query) => {
  if (!query) return '';
  const address = new URL(window.location.href);
  address.search = query;
  window.history.replaceState(null, '', address);
  return address.href;
}
"""
"""From a query to the whole link, which becomes the page's address."""


def theme() -> Any:
    """Of Gradio's themes the plain one, with nothing that is fetched from elsewhere."""
    return gr.themes.Default(  # pyright: ignore[reportPrivateImportUsage] - as its documentation has it
        primary_hue="orange",
        neutral_hue="slate",
        radius_size="lg",
        font=list(FONTS),
        font_mono=list(FONTS_OF_CODE),
    )
