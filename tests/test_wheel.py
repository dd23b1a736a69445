"""The built wheel, outside the repository, with the core's dependencies alone: what a user has who ran
`pip install .` and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
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


PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    root = tmp_path_factory.mktemp("wheel")
    source = copy_of_sources(root / "source")
    subprocess.run([*PIP, "wheel", "--no-deps", "-w", str(root), str(source)], check=True)
    shutil.rmtree(source)
    (built,) = root.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder into which the wheel was installed."""
    site = wheel.parent / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (site / "sitecustomize.py").write_text(SITE)
    return site


def copy_of_sources(folder: Path) -> Path:
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def contents(wheel: Path) -> set[str]:
    """The files of the package in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("causalfusion/")}


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


def test_it_holds_every_file_of_the_package(wheel: Path):
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc")
    here = {str(path.relative_to(ROOT / "src")) for path in files}
    expected = {name for name in here if name.startswith("causalfusion/")}
    assert contents(wheel) == expected
    assert {"causalfusion/py.typed", "causalfusion/models/shapes/model.safetensors"} <= expected


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path):
    source = copy_of_sources(tmp_path / "source")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    out = tmp_path / "dist"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(archive)]
    subprocess.run(command, check=True)
    (again,) = out.glob("*.whl")
    assert again.name == wheel.name and contents(again) == contents(wheel)


CONSUMER = """
from typing import assert_type

from torch import Tensor

from causalfusion import Pipeline, SampleConfig, load_config

pipeline = Pipeline.load("shapes")
assert_type(pipeline, Pipeline)
assert_type(pipeline.generate(prompts=["a star"], config=SampleConfig(num_ar_steps=4)), Tensor)
assert_type(pipeline.caption(["a.png"]), list[str])
assert_type(load_config("digits").train.lr, float)
"""
"""A user's code."""


def test_its_types_are_known_to_those_who_use_it(installed: Path, tmp_path: Path):
    (tmp_path / "good.py").write_text(CONSUMER)
    (tmp_path / "bad.py").write_text(CONSUMER + 'SampleConfig(num_ar_steps="four")\n')
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [(Path(f["file"]).name, f["rule"]) for f in found] == [("bad.py", "reportArgumentType")], found


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
