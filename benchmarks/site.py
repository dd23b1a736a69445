"""Hooks of the documentation site (mkdocs.yml): pages whose source lies outside docs/, and links to them.

On a repository page, links lead to files; on the site, to the pages made of them. Notebooks become pages too.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ("finetuning.md", "app.md", "export.md")
"""Pages of the navigation that are left out where they do not exist."""
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/causalfusion/models/shapes/README.md": "packaged_model.md",
    **{f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in ROOT.glob("notebooks/*.ipynb")},
}
"""The page of the site for each file outside docs/."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = _there(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in OUTSIDE.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=page_of(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == here != "index.md"), f"docs/{here}")
    return LINK.sub(lambda found: site_link(found[1], source, here), markdown)


def site_link(target: str, source: str, page: str) -> str:
    """A link's target on a page of the site, for a link in a file of the repository."""
    file = os.path.normpath(os.path.join(os.path.dirname(source), target))
    if file in OUTSIDE:
        return os.path.relpath(OUTSIDE[file], os.path.dirname(page) or ".")
    inside = file.removeprefix("docs/")
    return target if inside == file else os.path.relpath(inside, os.path.dirname(page) or ".")


def page_of(path: Path) -> str:
    """The Markdown of a page whose source is Markdown or a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"*This page is `notebooks/{path.name}`; the tests run it.*"])


def _there(nav: Any, docs: Path) -> Any:
    """The navigation without optional pages that do not exist."""
    if isinstance(nav, list):
        return [entry for entry in (_there(entry, docs) for entry in nav) if entry is not None]
    if isinstance(nav, dict):
        return {
            name: kept for name, value in nav.items() if (kept := _there(value, docs)) is not None
        } or None
    return None if nav in OPTIONAL and not (docs / nav).exists() else nav
