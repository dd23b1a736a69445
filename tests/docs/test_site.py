"""The documentation site builds without a warning, and fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers")
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=\"?https?:[^\s\">]+"
    r"|<link[^>]+rel=\"?(?:stylesheet|preload|icon|preconnect)[^>]*href=\"?https?:[^\s\">]+"
)
"""What a page loads from elsewhere."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NEEDED),
        reason="the site's packages are absent: pip install -e '.[docs]' -c constraints.txt",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


def test_it_is_whole(site: Path):
    for page in ("index", "packaged_model", "changelog", "notebooks/graft", "guides/train", "api/pipeline"):
        assert (site / f"{page}.html").is_file(), page
    reference = (site / "api" / "pipeline.html").read_text()
    assert "causalfusion.generate.pipeline.Pipeline.edit" in reference
    assert "Regenerate the masked region" in reference


def test_it_fetches_nothing_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        assert not LOADED.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:|@import", style.read_text()), style
