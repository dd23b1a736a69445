"""A study of systems: variants by recipes, quality after parts of the training, costs, cards."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from causalfusion.cli import run
from causalfusion.config import DataConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.estimate.planned import plan_run
from causalfusion.evaluate.cards.card import load_card
from causalfusion.evaluate.cards.compare import compare_cards
from causalfusion.model.arithmetic import expected_train_flops
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.saved.folder import checkpoints_of, load_spec
from causalfusion.study import systems
from causalfusion.study.grid import Job, jobs_of
from causalfusion.study.recipe import load_study, load_study_data
from causalfusion.study.systems import costs_of, save_cards, slugs_of

STUDY = """
title = "Two systems"
question = "Which?"
ar_steps = [1]
budgets = [0.5, 1.0]
[sample]
sampler = "dpm++"
diffusion_steps = [2]
[[variants]]
name = "joint"
[[variants]]
name = "next token"
recipes = ["latentlm"]
settings.model = { head = { depth = 1 } }
ar_steps = [0]
"""
DATA = """
recipes = ["digits"]
num_tokens = 16
features = "pixels:4"
count = 20
[settings.model]
hidden_size = 16
depth = 1
[settings.train]
images = 128
batch_size = 32
lr = 0.1
ema_decay = 0.0
evaluate_every = 0
"""


def test_budgets_costs_and_cards(tmp_path: Path):
    (tmp_path / "two.toml").write_text(STUDY)
    (tmp_path / "small.toml").write_text(DATA)
    command = ["study", str(tmp_path / "two.toml"), "--data", str(tmp_path / "small.toml"), "--seeds", "0"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    out = tmp_path / "out" / "small" / "two"
    study, data = load_study(str(tmp_path / "two.toml")), load_study_data(str(tmp_path / "small.toml"), [])
    jobs = jobs_of(study, data, [0], tmp_path / "out" / "small")
    assert [job.ar_steps for job in jobs] == [(1,), (16,)]
    assert [load_spec(c).images_seen for c in checkpoints_of(jobs[1].folder)] == [64, 128]

    text = (out / "results.md").read_text()
    half, whole = re.findall(r"^\| joint \| 1 \| ([\d.e+]+) \| ([\d.e+]+) \|$", text, re.MULTILINE)[0]
    at_the_end = re.findall(r"^\| joint \| ([\d.e+]+) \|", text, re.MULTILINE)[0]
    assert whole == at_the_end != half, "the last budget is the end, the first another model"
    cost = costs_of(jobs[1], data)
    assert cost.parameters == count_parameters(
        Transformer(load_spec(checkpoints_of(jobs[1].folder)[-1]).model)
    )
    assert f"| next token | 16 | {cost.parameters:,} |" in text

    cards = {path.stem: load_card(path) for path in (out / "cards").iterdir()}
    assert cards.keys() == {"joint-s1-seed0", "next-token-s16-seed0"}
    (figure,) = cards["joint-s1-seed0"].figures.values()
    assert f"{figure.value:.3g}" == whole and figure.count == 20
    (reference,) = cards["joint-s1-seed0"].references
    assert reference["name"] == "digits" and reference["fingerprint"] == figure.reference != ""

    same, other = list(cards.values()), tmp_path / "other"
    save_cards(with_other_data(jobs[0]), data, figure.features_fingerprint, other, "other")
    theirs = load_card(next(other.iterdir()))
    assert compare_cards(same, ["a", "b"]).rows[0].verdict.endswith("is best (no interval)")
    compared = compare_cards([same[0], theirs], ["a", "b"])
    assert compared.rows[0].verdict == "not ranked: the reference differs"
    assert ("reference[pixels:4].name", ("digits", "shapes")) in compared.differences


def with_other_data(job: Job) -> Job:
    """The same job and figures, judged by other images."""
    return replace(job, config=replace(job.config, data=DataConfig(source="shapes")))


def test_cards_of_names_that_differ_in_signs_have_files_of_their_own():
    slugs = slugs_of(["lr +", "lr -", "ε", "next token", "Next Token", "γ = 0.9"])
    assert len(set(slugs.values())) == 6 and all(slugs.values())
    assert slugs["γ = 0.9"] == "0-9" and slugs["lr +"].startswith("lr-")
    assert all(re.fullmatch("[a-z0-9-]+", slug) for slug in slugs.values())


def test_a_number_of_ar_steps_that_is_there_twice_is_one_column():
    study = replace(load_study("decay"), ar_steps=[1, 16, 0]).on(16)
    assert study.all_ar_steps(16) == [1, 16]


def test_all_systems_are_in_the_study():
    """Each by the choices that make it: block, head and plan."""
    variants = {v.name: v for v in load_study("systems").variants}
    assert {
        "CausalFusion",
        "DiT",
        "SiT",
        "Large-DiT",
        "FiTv2",
        "Transfusion",
        "MAR",
        "LatentLM",
    } <= variants.keys()
    configs = {name: load_config("digits", *v.recipes) for name, v in variants.items() if v.recipes}
    heads = {name: c.model.head.kind for name, c in configs.items()}
    assert {name for name, kind in heads.items() if kind == "per_token"} == {
        "MAR", "LatentLM", "CausalFusion, per-token head",
    }  # fmt: skip
    assert configs["MAR"].model.context == "bidirectional"
    assert configs["SiT"].diffusion.path == "rectified_flow"


@pytest.mark.parametrize("budgets", ["[0.4, 1.0]", "[1.0, 0.5]", "[0.0]", "[0.5, 1.5]"])
def test_budgets_that_no_checkpoint_has_are_refused(tmp_path: Path, budgets: str):
    (tmp_path / "two.toml").write_text(STUDY.replace("[0.5, 1.0]", budgets))
    with pytest.raises(UserError, match="rising shares of the training"):
        load_study(str(tmp_path / "two.toml"))


def test_arithmetic_counts_each_call_and_each_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Heun asks the model twice in a step; captions are tokens of a training, too."""
    (tmp_path / "study.toml").write_text(
        'title = ""\nquestion = ""\nar_steps = [1]\n'
        '[[variants]]\nname = "heun"\nsample = { sampler = "heun", diffusion_steps = [4] }\n'
        '[[variants]]\nname = "euler"\nsample = { sampler = "euler", diffusion_steps = [8] }\n'
        '[settings.diffusion]\npath = "rectified_flow"\nprediction_type = "velocity"\n'
    )
    (tmp_path / "data.toml").write_text(DATA.replace('"digits"', '"shapes"').replace("pixels:4", "pixels:8"))
    data = load_study_data(str(tmp_path / "data.toml"), [])
    jobs = jobs_of(load_study(str(tmp_path / "study.toml")), data, [0], tmp_path)
    planned = plan_run(replace(jobs[0].config, text=replace(jobs[0].config.text, tokenizer="train")))
    assert planned.text_tokens > 0
    monkeypatch.setattr(systems, "load_spec", lambda _: planned.config)
    monkeypatch.setattr(systems, "checkpoints_of", lambda folder: [folder])
    heun, euler = (costs_of(job, data) for job in jobs)
    assert heun.generation == euler.generation
    batch = planned.config.train.batch_size
    expected = expected_train_flops(planned.config, batch, planned.text_tokens).needed
    assert heun.training == expected > expected_train_flops(planned.config, batch).needed
