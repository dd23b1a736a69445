"""`python -m benchmarks.pythons`: the wheel in a fresh environment of each Python that is at hand.

Builds the wheel, and for each interpreter makes a virtual environment, installs the wheel with the core's
dependencies alone, draws with the packaged model and runs the quick demo, outside the repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def interpreter(version: str) -> str | None:
    """The interpreter of a version: on the path, or one of pyenv's."""
    found = shutil.which(f"python{version}")
    if found and _says(found, version):
        return found
    roots = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*"))
    return str(roots[-1] / "bin" / "python") if roots else None


def _says(python: str, version: str) -> bool:
    done = subprocess.run([python, "--version"], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.startswith(f"Python {version}.")


def try_wheel(wheel: Path, python: str, folder: Path) -> str:
    """What came of it, in words."""
    steps = {
        "environment": [python, "-m", "venv", str(folder / "venv")],
        "installation": ["pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        "sample": ["causalfusion", "sample", "a small red circle", "--images", "1", "--out", "drawn"],
        "demo": ["causalfusion", "demo", "--quick", "--out", "demo"],
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    seconds = {}
    for name, command in steps.items():
        program = folder / "venv" / "bin" / command[0]
        began = time.monotonic()
        done = subprocess.run(
            [str(program) if program.exists() else command[0], *command[1:]],
            cwd=folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        seconds[name] = round(time.monotonic() - began)
        if done.returncode:
            return f"{name} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    return "works (" + ", ".join(f"{name} {taken} s" for name, taken in seconds.items()) + ")"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pythons", description=__doc__)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="such as 3.12 3.13")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        source = shutil.copytree(ROOT / "src", out / "source" / "src").parent
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, source)
        pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "-w", str(out), str(source)]
        subprocess.run(pip, check=True)
        (wheel,) = out.glob("*.whl")
        for version in arguments.versions:
            python = interpreter(version)
            folder = out / version
            folder.mkdir()
            said = "none is here" if python is None else try_wheel(wheel, python, folder)
            print(f"{version}: {said}", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
