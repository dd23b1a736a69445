"""The layout: imports go one way, files have one subject's size."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "causalfusion"
ORDER = (
    "errors", "files", "weight_files", "rng", "config", "machine", "data", "codec", "factorization",
    "sequence", "elements", "documents", "rows", "mask", "model", "diffusion", "losses", "saved", "estimate",
    "pictures", "generate", "encoders", "train", "show", "evaluate", "autoencode", "study", "planner",
    "probe", "interop", "doctor", "app", "demo", "commands", "vocabulary", "cli", "__main__",
)  # fmt: skip
"""The way the data goes; what a later one holds is unknown to an earlier one."""
FILES = sorted(SOURCE.rglob("*.py"))


def layer(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """Layers of this package that a file imports from, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        parts = [m.split(".") for m in modules if m.startswith("causalfusion.")]
        names |= {p[1] for p in parts if p[1] in ORDER}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    if layer(path) == "__init__":
        return
    own = ORDER.index(layer(path))
    upwards = {name for name in imported_layers(path) if ORDER.index(name) > own}
    assert not upwards, f"{path.name} imports from {upwards}, which come after it"


def test_the_model_knows_nothing_of_training_or_generation():
    for path in (SOURCE / "model").glob("*.py"):
        assert not imported_layers(path) & {"train", "generate", "codec", "data", "losses", "diffusion"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320, "which second subject crept in?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno
            assert length <= 62, f"{node.name} has {length} lines"
