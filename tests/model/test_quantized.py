"""Weight-only int8 by torchao: near the model's images, in a quarter of the memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from causalfusion import Pipeline, SampleConfig, UserError
from causalfusion.cli import run
from causalfusion.model.quantized import bytes_of

EULER = SampleConfig(diffusion_steps=[4], guidance_scale=2.0)


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert run(["sample", "a star", "--quantize", "int8", "--out", str(tmp_path / "out")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "int8 weights need the package torchao" in said and "causalfusion[int8]" in said
    assert not (tmp_path / "out").exists()


def test_images_stay_near_and_weights_take_a_quarter(tmp_path: Path):
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    whole, small = Pipeline.load("shapes"), Pipeline.load("shapes", quantize="int8")
    blocks = [sum(map(bytes_of, p.model.blocks)) for p in (whole, small)]
    assert 0.25 < blocks[1] / blocks[0] < 0.29
    prompts = ["a small red circle", "a large blue star"]
    images = [p.generate(prompts=prompts, config=EULER) for p in (whole, small)]
    apart = (images[0] - images[1]).abs()
    assert 0 < apart.mean() < 0.02
    with pytest.raises(UserError, match="load it without quantize"):
        small.save_pretrained(tmp_path / "saved")
    command = ["sample", prompts[0], "--images", "1", "--diffusion-steps", "2", "--quantize", "int8"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["quantize"] == "int8"
    assert torch.equal(small.generate(prompts=prompts, config=EULER), images[1])
