"""The generating commands import torch and little beside it, as the user waits for each import."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = (
    "diffusers", "huggingface_hub", "matplotlib", "pandas", "scipy", "sklearn", "sympy", "torch._dynamo",
    "torchvision", "transformers",
)  # fmt: skip
SCRIPT = """
import json, sys
from causalfusion.cli import run
codes = [run(line.split("|")) for line in sys.argv[1:]]
print(json.dumps([codes, sorted(sys.modules)]))
"""


def test_generating_imports_neither_a_compiler_nor_other_frameworks(tmp_path: Path) -> None:
    image = tmp_path / "samples" / "000000.png"
    lines = [
        f"sample|--prompt|a small red circle|--images|2|--diffusion-steps|3|--out|{image.parent}",
        f"edit|{image}|--region|right|--prompt|a red circle|--diffusion-steps|2|--out|{tmp_path / 'edited'}",
        f"caption|{image}|--max-tokens|2",
    ]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *lines], capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 0], done.stderr
    assert "torch" in modules and not set(HEAVY) & set(modules)
