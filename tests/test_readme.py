"""The README's commands are ones that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from causalfusion import cli
from causalfusion.config.recipes import recipe_names
from causalfusion.train import auto

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def commands() -> list[str]:
    lines = []
    for name in PAGES:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        found = re.findall(r"^ {4,}(?:torchrun .* -m )?causalfusion(?:\.cli)? (.*)$", text, re.MULTILINE)
        lines += [line for line in found if "..." not in line]
    return lines


def test_there_are_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("line", commands())
def test_command_parses(line, monkeypatch):
    """As the command line itself reads it, in spellings of today."""
    tokens = shlex.split(line.replace("$S", "4"), comments=True)
    monkeypatch.setattr(cli, "model_settings", lambda *_: [])  # no model is at hand
    monkeypatch.setattr(cli, "teacher_settings", lambda *_: {})
    monkeypatch.setattr(cli, "probed_settings", lambda *_: {})
    monkeypatch.setattr(cli, "finetune_settings", lambda *_: {})
    monkeypatch.setattr(auto, "settings_for", lambda *_: ({}, []))  # nor data
    monkeypatch.setattr("causalfusion.data.guess_source", lambda paths: "folder")
    prepared = cli.prepare(tokens)
    assert not prepared.notes
    monkeypatch.setattr(cli.app, "config", prepared.config())
    _, bound, _ = cli.app.parse_args(prepared.tokens, exit_on_error=False, print_error=False)
    assert bound.arguments


def test_recipes_in_the_table_exist_and_none_is_missing():
    table = re.findall(r"^\| (`.*?`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`([\w-]+)`", row)}
    assert named == set(recipe_names())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if not link.startswith("http"):
            target, _, section = link.partition("#")
            target = (ROOT / page).parent / target
            assert target.exists(), f"{page} links to {link}"
            assert not section or section in sections(target), f"{page} links to {link}"


def sections(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
