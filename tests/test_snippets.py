"""The README's Python is code that runs, in the order in which it stands."""

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["images"].shape == (1, 3, 32, 32)
    assert (tmp_path / "circle.png").is_file()
    assert names["tokens"].shape == (4, 64, 48) and torch.isfinite(names["tokens"]).all()
