"""What is sampled where nothing is said: a model folder's own settings, and the sampler of its path."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import Pipeline, SampleConfig, UserError
from causalfusion.cli import run
from causalfusion.config import DiffusionConfig
from causalfusion.diffusion.process import make_process
from causalfusion.saved.folder import latest_model, packaged_models
from causalfusion.saved.sampling import write_sampling

CHAIN = make_process(DiffusionConfig())
FLOW = make_process(DiffusionConfig(path="rectified_flow", prediction_type="velocity"))
OWN = SampleConfig(sampler="dpm++", diffusion_steps=[12], guidance_scale=3.0)


def without_recommendation(folder: Path, lines: str = "") -> Path:
    """A copy of the packaged model with other lines in its sample.toml, or none."""
    shutil.copytree(packaged_models()["shapes"], folder)
    (folder / "sample.toml").unlink()
    if lines:
        (folder / "sample.toml").write_text(lines)
    return folder


@pytest.mark.parametrize(("process", "name"), [(CHAIN, "ddpm"), (FLOW, "euler")])
def test_auto_is_the_sampler_of_the_path(process, name):
    plain = SampleConfig()
    assert plain.sampler == "auto" and process.settled(plain) == replace(plain, sampler=name)
    start, predicted, noise = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    ends = []
    for config in (plain, SampleConfig(sampler=name)):
        sampler = process.sampler(config, 5)
        ends.append([sampler.step(index, start, predicted, noise) for index in range(5)])
    assert all(a.equal(b) for a, b in zip(*ends, strict=True))
    explicit = SampleConfig(sampler="dpm++")
    assert process.settled(explicit) is explicit


def test_auto_adds_the_noise_that_its_path_adds():
    warm = SampleConfig(temperature=0.5)
    assert CHAIN.settled(warm).temperature == 0.5
    with pytest.raises(UserError, match="expected 1, as the sampler euler adds no noise"):
        FLOW.sampler(warm, 3)


def test_a_pipeline_samples_as_its_folder_recommends(tmp_path: Path):
    pipeline, prompts = Pipeline.load("shapes"), ["a small red circle"]
    assert pipeline.sampling == pipeline.default_sampling == OWN
    said = pipeline.generate(prompts=prompts, config=OWN, seed=1)
    assert pipeline.generate(prompts=prompts, seed=1).equal(said)
    assert Pipeline.load(pipeline.save_pretrained(tmp_path / "saved")).default_sampling == OWN

    bare = Pipeline.load(without_recommendation(tmp_path / "bare"))
    assert bare.sampling is None and bare.default_sampling == SampleConfig(sampler="euler")
    few = SampleConfig(diffusion_steps=[2])
    images = [bare.generate(prompts=prompts, config=c) for c in (few, replace(few, sampler="euler"))]
    assert images[0].equal(images[1])


def test_options_of_commands_in_the_file_are_no_settings_of_sampling(tmp_path: Path):
    folder = without_recommendation(tmp_path / "seeded", "seed = 7\nnum_ar_steps = 2\n")
    assert Pipeline.load(folder).default_sampling == SampleConfig(num_ar_steps=2, sampler="euler")
    write_sampling(folder, OWN)  # as plan --save does
    assert Pipeline.load(folder).default_sampling == OWN
    assert tomllib.loads((folder / "sample.toml").read_text())["seed"] == 7
    wrong = without_recommendation(tmp_path / "wrong", "num_steps = 2\n")
    with pytest.raises(UserError, match=r"sample.toml: num_steps; expected one of"):
        Pipeline.load(wrong)


def test_a_small_region_has_no_more_ar_steps_than_tokens(tmp_path: Path):
    steps = without_recommendation(tmp_path / "steps", "num_ar_steps = 16\ndiffusion_steps = [2]\n")
    pipeline, image, mask = Pipeline.load(steps), torch.zeros(1, 3, 32, 32), torch.zeros(32, 32).bool()
    mask[:4, :8] = True
    sides = 32 // pipeline.grid[0], 32 // pipeline.grid[1]
    tokens = -(-4 // sides[0]) * -(-8 // sides[1])
    fitted = SampleConfig(num_ar_steps=tokens, diffusion_steps=[2])
    edited = pipeline.edit(image, mask, prompts=["a red circle"])
    assert edited.equal(pipeline.edit(image, mask, config=fitted, prompts=["a red circle"]))


@pytest.mark.parametrize("of_whole", ["num_ar_steps = 4\n", "sizes = [16, 16, 16, 16]\n"])
def test_steps_of_a_whole_image_are_fitted_to_a_small_region(tmp_path: Path, of_whole: str):
    """As `plan --rounds --save` recommends them: diffusion steps, or tokens, of each AR step."""
    own = f"{of_whole}diffusion_steps = [3, 2, 2, 1]\n"
    folder = without_recommendation(tmp_path / "own", own)
    pipeline, image, mask = Pipeline.load(folder), torch.zeros(1, 3, 32, 32), torch.zeros(32, 32).bool()
    mask[:4, :8] = True
    fitted = SampleConfig(num_ar_steps=2, diffusion_steps=[3, 2])
    edited = pipeline.edit(image, mask, prompts=["a red circle"])
    assert edited.equal(pipeline.edit(image, mask, config=fitted, prompts=["a red circle"]))
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(tmp_path / "mask.png")
    line = [
        "edit",
        str(tmp_path / "image.png"),
        "--mask",
        str(tmp_path / "mask.png"),
        "--prompt",
        "a red circle",
    ]
    assert run([*line, "--model", str(folder), "--out", str(tmp_path / "edited")]) == 0


def test_what_auto_stood_for_is_recorded(digits_run: Path, tmp_path: Path):
    """In a run's settings, in its models, and in those of samples, whose pixels are those of the name."""
    folder = latest_model(digits_run)
    assert tomllib.loads((folder / "sample.toml").read_text())["sampler"] == "ddpm"
    assert json.loads((folder / "state" / "run.json").read_text())["sample"]["sampler"] == "ddpm"
    command = ["sample", "--model", str(digits_run), "--images", "4", "--diffusion-steps", "3"]
    for name in ("auto", "ddpm"):
        assert run([*command, "--sampler", name, "--out", str(tmp_path / name)]) == 0
    told = [json.loads((tmp_path / name / "settings.json").read_text()) for name in ("auto", "ddpm")]
    assert told[0]["settings"] == told[1]["settings"] and told[0]["settings"]["sampler"] == "ddpm"
    assert told[0]["identity"] == told[1]["identity"], "one goes on with the other"
    files = [(tmp_path / name / "000003.png").read_bytes() for name in ("auto", "ddpm")]
    assert files[0] == files[1]


def test_an_option_is_refused_for_what_auto_stands_for(capsys: pytest.CaptureFixture[str]):
    assert run(["sample", "a star", "--sampler", "auto", "--variance", "fixed_small"]) == 2
    assert "it needs --sampler ddpm, not euler; leave it out" in capsys.readouterr().err
    assert run(["train", "--config", "digits", "--sample.solver-order", "3"]) == 2
    assert "it needs --sample.sampler dpm++ or unipc, not ddpm" in capsys.readouterr().err
