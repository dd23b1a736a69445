"""The commands of all pages are ones that the command line takes, and their links lead somewhere."""

import copy
import os
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError
from cyclopts.argument import ArgumentCollection

from causalfusion import cli
from causalfusion.config.recipes import recipe_names
from causalfusion.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "src/causalfusion/models/*/README.md", "notebooks/*.ipynb")
    for path in ROOT.glob(pattern)
)
START = r"(?:torchrun [^`\n]*-m )?causalfusion(?:\.cli)? "
LINE = re.compile(rf"^ *{START}(.*)$", re.MULTILINE)
INLINE = re.compile(rf"`{START}([^`]+)`")


def text_of(page: str) -> str:
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return (
        "\n".join(re.findall(r'^ *"(.*?)(?:\\n)?",?$', text, re.MULTILINE))
        if page.endswith("ipynb")
        else text
    )


@cache
def commands() -> list[str]:
    """Command lines, without those that stand for several."""
    found = [
        line for page in PAGES for line in (*LINE.findall(text_of(page)), *INLINE.findall(text_of(page)))
    ]
    return [line for line in dict.fromkeys(found) if not any(sign in line for sign in ("...", "[MODEL]"))]


def test_there_are_commands():
    assert len(commands()) > 100


ASSEMBLED: dict = {}
"""The arguments of each command, which take longer to assemble than a line to parse."""


def arguments_of(app, **settings):
    """As `App.assemble_argument_collection`, without what an earlier line left in them."""
    key = (*app.name, repr(app.default_command), *settings.items())
    if key not in ASSEMBLED:
        ASSEMBLED[key] = ASSEMBLE(app, **settings)
    copies = {id(argument): copy.copy(argument) for argument in ASSEMBLED[key]}
    for argument in copies.values():
        argument.tokens, argument._marked_converted = [], False
        argument.children = ArgumentCollection([copies[id(child)] for child in argument.children])
    return ArgumentCollection(copies.values())


ASSEMBLE = App.assemble_argument_collection


@pytest.fixture
def nothing_at_hand(monkeypatch, tmp_path):
    """No models, no data; a file of settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "pairs.toml"):
        (tmp_path / name).write_text("[train]\nimages = 1000\n")
    monkeypatch.setattr(App, "assemble_argument_collection", arguments_of)
    monkeypatch.setattr(cli, "model_settings", lambda *_: [])
    for name in ("teacher_settings", "finetune_settings", "probed_settings"):
        monkeypatch.setattr(cli, name, lambda *_: {})
    monkeypatch.setattr(cli, "_with_choices", lambda prepared, *_: prepared)
    monkeypatch.setattr("causalfusion.data.guess_source", lambda paths: "folder")


@pytest.mark.parametrize("line", commands())
@pytest.mark.usefixtures("nothing_at_hand")
def test_command_parses(line, monkeypatch):
    """As the command line itself reads it, in spellings of today."""
    tokens = shlex.split(re.sub(r"\$\w+", "4", line), comments=True)
    chain, apps, rest = cli.app.parse_commands(tokens)
    if not rest or "--help" in rest:  # a mention
        assert chain and not (rest and apps[-1].default_command is None), f"there is no command {line}"
        return
    prepared = parsed(tokens, monkeypatch)
    assert not prepared.notes


def parsed(tokens, monkeypatch):
    prepared = cli.prepare(tokens)
    monkeypatch.setattr(cli.app, "config", prepared.config())
    _, bound, _ = cli.app.parse_args(prepared.tokens, exit_on_error=False, print_error=False)
    assert bound.arguments
    return prepared


@pytest.mark.parametrize(
    "line",
    [
        "train photos --train.minuets 3", "train photos --config imagenet257", "train photos --train.lr fast",
        "sample --num-ar-steps -2", "train photos --train.minutes -1", "plan --model shapes --bugdet 2s",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("nothing_at_hand")
def test_what_is_wrong_would_be_found(line, monkeypatch):
    with pytest.raises((UserError, CycloptsError, ValueError)):
        parsed(shlex.split(line), monkeypatch)


def test_every_recipe_has_its_place_among_the_recipes():
    page = (ROOT / "docs" / "recipes.md").read_text()
    named = {
        *re.findall(r"^### (\S+)$", page, re.MULTILINE),
        *re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE),
    }
    assert named == set(recipe_names())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not link.startswith(("http", "mailto:")):
            target, _, section = link.partition("#")
            target = (ROOT / page).parent / target if target else ROOT / page
            assert target.exists(), f"{page} links to {link}"
            assert not section or section in sections(target), f"{page} links to {link}"


def test_every_page_is_reached_from_the_first():
    """Along links, as one reads."""
    seen, left = set(), ["docs/index.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in re.findall(r"\]\(([^)#\s]+\.md)", text_of(page)):
            if not link.startswith("http"):
                left.append(os.path.normpath(Path(page).parent / link))
    assert {page for page in PAGES if page.startswith("docs/")} <= seen


def sections(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
