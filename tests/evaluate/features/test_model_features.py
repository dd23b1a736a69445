"""A model's own features as a feature space."""

import json

import numpy as np
import pytest
import torch

from causalfusion.cli import run
from causalfusion.errors import UserError
from causalfusion.evaluate.features.model import parse_place
from causalfusion.evaluate.features.open import open_extractor
from causalfusion.generate.pipeline import Pipeline

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def model(digits_run):
    return digits_run


def test_they_are_those_of_the_pipeline(model):
    pipeline = Pipeline.load(model)
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = open_extractor(f"model:{model}:-1")(IMAGES).pool
    assert np.allclose(found, pipeline.features(pixels, layer=-1).numpy(), atol=1e-4)
    middle = open_extractor(f"model:{model}")
    assert middle.name == "model:run-layer1-clean"
    assert np.allclose(middle(IMAGES).pool, pipeline.features(pixels, layer=1).numpy(), atol=1e-4)


def test_noise_belongs_to_the_image_and_not_to_its_place(model):
    extractor = open_extractor(f"model:{model}:2:0.3")
    whole = extractor(IMAGES).pool
    assert np.allclose(extractor(IMAGES[2:3]).pool[0], whole[2], atol=1e-4)
    assert not np.allclose(whole, open_extractor(f"model:{model}:2")(IMAGES).pool, atol=1e-2)


def test_feature_spaces_have_fingerprints_of_their_own(model):
    names = [f"model:{model}:{rest}" for rest in ("0", "2", "2:0.3", "2:0.4")]
    assert len({open_extractor(name).fingerprint for name in names}) == 4
    assert open_extractor(names[1]).fingerprint == open_extractor(f"model:{model}:-1:clean").fingerprint


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("runs/a", ("runs/a", None, "clean")),
        ("runs/a:3", ("runs/a", 3, "clean")),
        ("runs/a:-1:0.2", ("runs/a", -1, "0.2")),
        ("C:/runs/a", ("C:/runs/a", None, "clean")),
        ("C:/runs/a:2:clean", ("C:/runs/a", 2, "clean")),
    ],
)
def test_places_may_have_colons(place, parts):
    assert parse_place(place) == parts


def test_bad_names_are_refused(model):
    for rest, words in ((":9", "layer is 9"), (":1:x", "expected clean"), (":1:5000", "up to 1000")):
        with pytest.raises(UserError, match=words):
            open_extractor(f"model:{model}{rest}")
    with pytest.raises(UserError, match="expected a model: model:runs/digits"):
        open_extractor("model")


def test_a_frechet_distance_in_a_models_own_features(model, tmp_path):
    spaces = [f"model:{model}:2", f"model:{model}:2:0.3"]
    line = [
        "evaluate",
        "--model",
        str(model),
        "--reference",
        "digits",
        "--features",
        *spaces,
        "--images",
        "40",
    ]
    line += ["--diffusion-steps", "2", "--measures", "frechet", "--out", str(tmp_path / "card")]
    assert run([*line, "--cache", str(tmp_path / "cache")]) == 0
    figures = json.loads((tmp_path / "card" / "card.json").read_text())["figures"]
    assert {"frechet_runlayer2clean_40", "frechet_runlayer2t300_40"} <= set(figures)
