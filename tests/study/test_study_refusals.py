"""Faults that a study refuses before it trains; messages of `compare` and `plan` about damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import FILE_NAME, FORMAT, load_card
from causalfusion.study.grid import jobs_of
from causalfusion.study.recipe import Variant, load_study, load_study_data
from causalfusion.study.request import StudyRequest
from causalfusion.study.run import check_before, run_studies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "nope"}, "nope"),
        ({"num_tokens": 15}, "num_tokens = 15; images of its recipes have 16"),
    ],
)
def test_a_wrong_data_file_is_found_before_training(change, message, tmp_path: Path):
    study_data = replace(load_study_data("digits", []), **change)
    with pytest.raises(UserError, match=message):
        check_before(jobs_of(load_study("decay"), study_data, [0], tmp_path), study_data)
    assert not any(tmp_path.iterdir())


def test_a_wrong_variant_is_found_before_training(tmp_path: Path):
    study_data, study = load_study_data("digits", []), load_study("decay")
    last = Variant(name="too many", settings={"factorization": {"distribution": "fixed", "num_ar_steps": 99}})
    study = replace(study, variants=[*study.variants, last])
    with pytest.raises(UserError, match=r"variant 'too many': .*num_ar_steps is 99"):
        check_before(jobs_of(study, study_data, [0], tmp_path), study_data)


def test_sampling_that_a_variant_does_not_have_is_found_before_training(tmp_path: Path):
    """It came to light when the figures of the trained models were measured."""
    study_data, study = load_study_data("digits", []), load_study("decay")
    flow = {"diffusion": {"path": "rectified_flow", "prediction_type": "velocity"}}
    for wrong, message in (
        (Variant(name="flow", settings=flow), r"'flow': sample.sampler is .*expected auto, or one of euler"),
        (Variant(name="none", ar_steps=[64]), r"'none': each of its ar_steps is larger than the 16 tokens"),
        (
            Variant(name="steps", sample={"diffusion_steps": [5000]}),
            r"'steps': sample.diffusion_steps is 5000",
        ),
    ):
        jobs = jobs_of(replace(study, variants=[*study.variants, wrong]), study_data, [0], tmp_path)
        with pytest.raises(UserError, match=message):
            check_before(jobs, study_data)


def test_two_studies_of_one_name_are_refused(tmp_path: Path):
    study_data, request = load_study_data("digits", []), StudyRequest(out=tmp_path / "out")
    with pytest.raises(UserError, match="two of the studies are called decay"):
        run_studies(["decay", str(tmp_path / "decay.toml")], study_data, request)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ar-steps", "decay", "order", "class-tokens", "conditioning"])
@pytest.mark.parametrize("data", ["digits", "shapes"])
def test_the_recipes_pass(name, data, tmp_path: Path):
    study_data = load_study_data(data, [])
    check_before(jobs_of(load_study(name), study_data, [0, 1], tmp_path), study_data)


def test_too_few_images_are_refused(tmp_path: Path):
    text = Path(__file__).parents[2] / "src/causalfusion/studies/data/digits.toml"
    wrong = tmp_path / "few.toml"
    wrong.write_text(text.read_text().replace("count = 1000", "count = 1"))
    with pytest.raises(UserError, match="count is 1"):
        load_study_data(str(wrong), [])


@pytest.mark.parametrize(
    "change",
    [
        {"references": None},
        {"samples": []},
        {"figures": {"frechet_digits_9": {"quantity": "frechet", "value": 1.0, "count": None}}},
    ],
)
def test_a_malformed_card_is_one_line(change, tmp_path: Path):
    card = {"format": FORMAT, "figures": {}, "samples": {}, "references": [], "features": []}
    (tmp_path / FILE_NAME).write_text(json.dumps(card))
    assert load_card(tmp_path).figures == {}
    figure = {"features": "digits", "features_fingerprint": "f"}
    if "figures" in change:
        change = {"figures": {k: {**figure, **v} for k, v in change["figures"].items()}}
    (tmp_path / FILE_NAME).write_text(json.dumps(card | change))
    with pytest.raises(UserError, match="not a whole result card"):
        load_card(tmp_path)
