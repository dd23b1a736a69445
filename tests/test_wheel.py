"""The built wheel, outside the repository, with the core's dependencies alone: what a user has who ran
`pip install .` and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("pycocoevalcap", "transformers", "torchvision", "accelerate", "gradio", "pytest", "hypothesis")
SITE = f"""
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {EXTRAS} else found(name, path, target)

PathFinder.find_spec = find_spec
"""
"""Run at the start of the interpreter: the extras, which this environment has, are not there."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed."""
    root = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", root / "source" / "src", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(root), str(root / "source")], check=True)
    (wheel,) = root.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(root / "site"), str(wheel)], check=True)
    (root / "site" / "sitecustomize.py").write_text(SITE)
    shutil.rmtree(root / "source")
    return root / "site"


def python(installed: Path, *arguments: str, folder: Path) -> str:
    """The output of a command."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{arguments}:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path):
    print_file = "import causalfusion; print(causalfusion.__file__)"
    assert Path(python(installed, "-c", print_file, folder=tmp_path).strip()).is_relative_to(installed)
    script = installed / "bin" / "causalfusion"
    assert "sample" in python(installed, str(script), "--help", folder=tmp_path)


def test_the_model_that_ships_draws(installed: Path, tmp_path: Path):
    python(
        installed, "-m", "causalfusion", "sample", "--prompt", "a small red circle", "--images", "1",
        "--out", "drawn", folder=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "drawn" / "000000.png").is_file()
    said = python(installed, "-m", "causalfusion", "caption", "drawn/000000.png", folder=tmp_path)
    assert "red circle" in said


@pytest.mark.parametrize("recipe", ["cifar10", "imagenet256"])
def test_recipes_are_there(installed: Path, tmp_path: Path, recipe: str):
    said = python(
        installed,
        "-m",
        "causalfusion",
        "estimate",
        recipe,
        "--gpu",
        "h100",
        "--gpus",
        "64",
        folder=tmp_path,
    )
    assert "parameters" in said


def test_the_demo_comes_to_its_end(installed: Path, tmp_path: Path):
    said = python(installed, "-m", "causalfusion", "demo", "--quick", "--out", "demo", folder=tmp_path)
    assert "pairs not seen in training" in said
    assert "Text-guided edits" in (tmp_path / "demo" / "report.html").read_text()
