"""The model that ships: small enough, whole, and as good as its card says, as far as few scenes show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.config.recipes import load_layer
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.text_image import measure_caption_truth, measure_edits, measure_text_to_image
from causalfusion.generate.pipeline import Pipeline
from causalfusion.saved.folder import packaged_models

FOLDER = packaged_models()["shapes"]
FIGURES = json.loads((FOLDER / "figures.json").read_text())
SCENES = 48


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("shapes")


@pytest.fixture(scope="module")
def one_object() -> Shapes:
    return Shapes("test", num_objects=1)


@pytest.fixture(scope="module")
def sample() -> SampleConfig:
    return SampleConfig(**load_layer(str(FOLDER / "sample.toml")))


def within(found: float, expected: float) -> bool:
    """Within four standard errors of SCENES draws, with which figures over hundreds agree."""
    error = (max(expected * (1 - expected), 0.02) / SCENES) ** 0.5
    return abs(found - expected) <= 4 * error


def test_it_is_small_and_every_file_is_there():
    files = {path.name: path.stat().st_size for path in Path(FOLDER).iterdir()}
    assert files.keys() == {
        "config.json", "model.safetensors", "tokenizer.json", "sample.toml", "figures.json", "README.md",
    }  # fmt: skip
    assert sum(files.values()) <= 8 * 2**20


def test_its_captions_are_true(pipeline, one_object, monkeypatch):
    for name in ("bleu.bleu", "cider.cider", "rouge.rouge"):  # the extra `eval`, which the demo does without
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{name}", None)
    found, _ = measure_caption_truth(pipeline, one_object, SCENES, WriteConfig())
    card = FIGURES["test"]["one object"]["captions"]["all"]
    assert card >= 0.9 and within(found["all"], card)


def test_its_images_are_what_the_prompts_say(pipeline, one_object, sample):
    found, _ = measure_text_to_image(pipeline, one_object, SCENES, sample)
    assert within(found["all"], FIGURES["test"]["one object"]["text_to_image_S1"]["all"])
    assert found["colors"] >= 0.9


def test_edits_leave_the_rest_alone(pipeline, one_object, sample):
    assert measure_edits(pipeline, one_object, 12, sample)["outside_unchanged"] == 1.0


def test_edits_of_later_batches_have_noise_of_their_own(pipeline, one_object, monkeypatch):
    """As in one batch, for each candidate: not the noise of the first batch again."""
    drawn, edit = {}, Pipeline.edit

    def kept(self, *given, **options):
        found = edit(self, *given, **options)
        drawn.setdefault((size, options["seed"]), []).append(found)
        return found

    monkeypatch.setattr(Pipeline, "edit", kept)
    few = SampleConfig(diffusion_steps=[1], num_ar_steps=2)
    for size in (4, 2):
        measure_edits(pipeline, one_object, 4, few, candidates=2, batch_size=size)
    for seed in {seed for _, seed in drawn}:
        (whole,) = drawn[4, seed]
        torch.testing.assert_close(torch.cat(drawn[2, seed]), whole, rtol=0, atol=1e-4)
