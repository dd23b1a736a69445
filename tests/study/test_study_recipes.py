"""The studies that ship are whole and have the paper's figures."""

from dataclasses import replace
from pathlib import Path

import pytest

from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.estimate.planned import plan_run
from causalfusion.model.arithmetic import expected_train_flops
from causalfusion.study.grid import jobs_of
from causalfusion.study.recipe import (
    Claim,
    Study,
    Variant,
    fill_in,
    load_study,
    load_study_data,
    study_data_names,
    study_names,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
PAPER = {
    ("ar-steps", "1"): [13.78, 356.69, 404.67, 390.18],
    ("ar-steps", "all tokens"): [313.28, 321.62, 261.26, 192.25],
    ("decay", "γ = 0.9"): [12.89, 15.57, 18.83, 22.72],
    ("decay", "γ = 0.8"): [12.78, 15.42, 19.38, 23.78],
    ("order", "dilated"): [15.54],
    ("ar-weight", "λ = 2"): [12.13, 15.15, 18.09],
    ("timesteps", "8x t per AR step"): [12.23],
    ("class-tokens", "4 repeated 16x"): [11.75],
}


def test_every_table_of_the_paper_is_a_study():
    assert study_names() == [
        "ar-steps", "ar-weight", "class-tokens", "conditioning", "decay", "efficient", "noise", "order",
        "systems", "timesteps",
    ]  # fmt: skip
    for (study, variant), figures in PAPER.items():
        assert next(v.paper for v in load_study(study).variants if v.name == variant) == figures


@pytest.mark.parametrize("study", study_names())
@pytest.mark.parametrize("study_data", study_data_names())
def test_every_study_makes_valid_runs_on_every_data(study, study_data, tmp_path):
    jobs = jobs_of(load_study(study), load_study_data(study_data, []), [0, 1], tmp_path)
    assert len({job.folder for job in jobs}) == len(jobs), "two variants of a study are the same run"
    assert {job.config.train.seed for job in jobs} == {0, 1}


def test_runs_that_two_studies_share_have_one_folder(tmp_path):
    study_data = load_study_data("digits", [])
    of = {
        name: jobs_of(load_study(name), study_data, [0], tmp_path) for name in ("decay", "ar-weight", "order")
    }
    folders = [
        next(job.folder for job in of[study] if job.variant == variant)
        for study, variant in (("decay", "γ = 0.9"), ("ar-weight", "λ = 1"), ("order", "random"))
    ]
    assert len(set(folders)) == 1


def test_generation_follows_the_order_of_training(tmp_path):
    study_data = load_study_data("digits", [])
    raster = jobs_of(load_study("order"), study_data, [0], tmp_path)[0]
    assert raster.sampling(study_data, 4).order == "raster"
    assert raster.sampling(study_data, 4).num_ar_steps == 4


def test_every_path_to_noise_is_sampled_by_a_sampler_that_it_has(tmp_path):
    study_data = load_study_data("digits", [])
    jobs = jobs_of(load_study("noise"), study_data, [0], tmp_path)
    assert {job.config.diffusion.path for job in jobs} == {"ddpm", "rectified_flow"}
    for job in jobs:
        sampling = job.sampling(study_data, 4)
        assert (sampling.sampler, sampling.num_ar_steps) == ("dpm++", 4)
        make_process(job.config.diffusion).sampler(sampling, 25)


def test_placeholders_become_numbers_of_the_data():
    given = {"factorization": {"num_ar_steps": "L", "block_size": "side/2", "order": "raster"}}
    filled = {"factorization": {"num_ar_steps": 64, "block_size": 4, "order": "raster"}}
    assert fill_in(given, 64) == filled


def test_layers_change_the_training(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("[train]\nimages = 123\n")
    jobs = jobs_of(load_study("decay"), load_study_data("digits", [str(mine)]), [0], tmp_path)
    assert {job.config.train.images for job in jobs} == {123}


def test_equal_arithmetic_is_the_first_variants_to_a_batch(tmp_path):
    study = load_study("efficient")
    jobs = jobs_of(study, load_study_data("digits", []), [0], tmp_path)
    arithmetic = []
    for variant, job in zip(study.variants, jobs, strict=True):
        config = plan_run(job.config).config
        an_image = expected_train_flops(config, config.train.batch_size).needed
        whole = an_image * config.train.images / variant.share
        arithmetic.append((whole, an_image * config.train.batch_size))
        assert config.train.warmup_images / config.train.images == pytest.approx(5000 / 40_000, rel=1e-3)
    first = arithmetic[0][0]
    for variant, (whole, batch) in zip(study.variants, arithmetic, strict=True):
        assert abs(whole - first) <= batch / variant.share, variant.name
    images = [job.config.train.images for job in jobs]
    assert images[0] == 40_000 and len(set(images)) > 4, "the variants cost different arithmetic an image"


def test_a_share_of_the_images_shortens_the_training(tmp_path):
    study = replace(load_study("decay"), variants=[Variant(name="all"), Variant(name="half", share=0.5)])
    jobs = jobs_of(study, load_study_data("digits", []), [0], tmp_path)
    assert [job.config.train.images for job in jobs] == [40_000, 19_968]
    with pytest.raises(UserError, match="half: share is 0"):
        Variant(name="half", share=0)
    epochs = replace(study, settings={"train": {"epochs": 2.0}})
    with pytest.raises(UserError, match=r"train.epochs is 2 .*expected train.images"):
        jobs_of(epochs, load_study_data("digits", []), [0], tmp_path)


def test_no_ar_steps_are_one_for_each_token():
    """In tables and findings, too: figures at S = 0 were measured and left out."""
    variants = [Variant(name="a"), Variant(name="b", ar_steps=[0])]
    claim = Claim(text="a is better", better=["a @ 0"], worse=["b @ 0"])
    study = Study(title="", question="", ar_steps=[1, 0], variants=variants, claims=[claim]).on(16)
    assert study.all_ar_steps(16) == [1, 16]
    assert study.entries() == {"a @ 1", "a @ 16", "b @ 16"}
    assert (study.claims[0].better, study.claims[0].worse) == (["a @ 16"], ["b @ 16"])


def test_a_variant_goes_on_from_its_base(tmp_path):
    jobs = {
        job.variant: job.config
        for job in jobs_of(load_study("efficient"), load_study_data("digits", []), [0], tmp_path)
    }
    last = jobs["the last with clean data under the velocity's error"]
    assert (last.diffusion.path, last.diffusion.prediction_type) == ("rectified_flow", "sample")
    assert (last.train.optimizer, last.model.mlp, last.factorization.decay) == ("muon", "swiglu", 0.6)
    velocity = jobs["velocity on a straight path"]
    assert (velocity.train.optimizer, velocity.factorization.decay) == ("adamw", 0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'title = "t"\nquestion = "q"\nar_steps = [1]\n[[variants]]\nname = "a"\nbase = "b"\n'
            '[[variants]]\nname = "b"',
            "variant 'a' has the base 'b'; expected one of the variants before it: there is none",
        ),
        ('title = "t"\nquestion = "q"\nar_steps = [1]\nequal = "time"\nvariants = []', "equal is 'time'"),
        ("title = 1", "title is 1; expected a value of type str"),
        ('title = "t"\nquestion = "q"\nar_steps = [1]\nvariants = []', "no variants"),
        (
            'title = "t"\nquestion = "q"\nar_steps = [1]\n[[variants]]\nname = "a"\n[[variants]]\nname = "a"',
            "variant 'a' twice",
        ),
        (
            'title = "t"\nquestion = "q"\nar_steps = [1]\n[[variants]]\nname = "a"\n'
            '[[claims]]\ntext = "c"\nbetter = ["b @ 1"]\nworse = ["a @ 1"]',
            "compares 'b @ 1'",
        ),
        ("= 3", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_study(str(path))
    assert "\n" not in str(caught.value)


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(UserError, match="neither a file nor one of ar-steps"):
        load_study("decai")
    with pytest.raises(UserError, match="neither a file nor one of cifar10, cifar10-small, digits"):
        load_study_data("imagenet", [])
    assert Path("decai").exists() is False


def test_runs_of_different_settings_have_different_folders(tmp_path):
    """Though two settings have one name: the second variant's figures were those of the first one's run."""
    variants = [
        Variant(name="plain"),
        Variant(name="model", settings={"model": {"depth": 2}}),
        Variant(name="head", settings={"model": {"head": {"depth": 2}}}),
        Variant(name="model again", settings={"model": {"depth": 2}}),
    ]
    study = Study(title="", question="", ar_steps=[1], variants=variants)
    jobs = jobs_of(study, load_study_data("digits", []), [0, 1], tmp_path)
    folders = {(job.variant, job.seed): job.folder for job in jobs}
    assert folders["model", 0] != folders["head", 0] and folders["model", 0] == folders["model again", 0]
    assert folders["model", 1].parent == folders["model", 0].parent != folders["head", 1].parent
    alone = jobs_of(replace(study, variants=variants[:2]), load_study_data("digits", []), [0], tmp_path)
    assert [job.folder.parent.name for job in alone] == ["as-given", "depth=2"], "as ever"
