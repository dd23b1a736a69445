"""pyproject.toml declares what the package needs and holds."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "causalfusion"
DISTRIBUTIONS = {
    "PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml",
}  # fmt: skip
"""Where a module's distribution has another name."""
STANDARD = sys.stdlib_module_names | {"compression"}
"""Python 3.14's too."""


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}


def imports(path: Path) -> dict[str, bool]:
    """Distributions that a file imports; True: where an import that fails is handled."""
    found: dict[str, bool] = {}
    tree = ast.parse(path.read_text())
    handled = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(h) for h in node.handlers)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        for module in modules:
            top = module.split(".")[0]
            if top not in STANDARD and top != "causalfusion":
                name = DISTRIBUTIONS.get(top, top)
                found[name] = found.get(name, True) and id(node) in handled
    return found


def test_what_is_imported_is_declared_and_what_is_extra_may_be_missing():
    core = names_of(project()["project"]["dependencies"])
    extras = project()["project"]["optional-dependencies"]
    extra = names_of([name for which in extras if which != "dev" for name in extras[which]])
    used: set[str] = set()
    for path in sorted(SOURCE.rglob("*.py")):
        for name, handled in imports(path).items():
            used.add(name)
            assert name in core or (name in extra and handled), f"{path} imports {name}"
    assert core <= used | {"tensorboard"}, "a dependency that nothing imports (torch imports tensorboard)"


def test_the_core_is_small():
    heavy = {"torchvision", "torch-fidelity", "clean-fid", "pycocoevalcap", "transformers", "accelerate"}
    assert not names_of(project()["project"]["dependencies"]) & heavy


def test_every_file_of_the_package_is_installed():
    patterns = project()["tool"]["setuptools"]["package-data"]["causalfusion"]
    others = [p for p in SOURCE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert {"recipes", "models", "templates", "py.typed"} <= {p.relative_to(SOURCE).parts[0] for p in others}
    for path in others:
        name = str(path.relative_to(SOURCE))
        assert any(fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns), name
    for path in SOURCE.rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} is not a package"


def test_pins_are_of_what_is_declared():
    declared = names_of(project()["project"]["dependencies"])
    for extra in project()["project"]["optional-dependencies"].values():
        declared |= names_of(extra)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = names_of([line for line in lines if line and not line.startswith("#")])
    assert pinned <= declared | {"pycocotools"}, "pycocotools comes with pycocoevalcap"


def test_every_extra_is_in_the_table_with_what_it_brings():
    page = (ROOT / "docs" / "install.md").read_text()
    rows = {name: brought for name, brought in re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)}
    extras = project()["project"]["optional-dependencies"]
    assert rows.keys() == extras.keys()
    for name, requirements in extras.items():
        said = {text.split("[")[0] for text in re.findall(r"`([^`]+)`", rows[name])}
        assert name == "dev" or said == names_of(requirements), name


@pytest.mark.parametrize("where", ["classifiers", "requires-python"])
def test_python_versions(where: str):
    declared = project()["project"][where]
    versions = {f"3.{minor}" for minor in (11, 12, 13)}
    if where == "classifiers":
        found = {c.rpartition(" ")[2] for c in declared if re.fullmatch(r".*Python :: 3\.\d+", c)}
        assert found == versions
    else:
        assert declared == ">=3.11"
    assert "{}.{}".format(*sys.version_info) in versions
