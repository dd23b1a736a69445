"""A study from its command to its tables; interrupted, it goes on."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from causalfusion.cli import run
from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.saved.folder import checkpoints_of
from causalfusion.study import run as study_run
from causalfusion.study.grid import jobs_of
from causalfusion.study.recipe import StudyData, Variant, load_study
from causalfusion.study.tables import write_results

RECIPE = """
title = "Two numbers of AR steps"
question = "Which?"
ar_steps = [1, 2, 32]

[[variants]]
name = "one"
settings.factorization = { distribution = "fixed", num_ar_steps = 1 }
paper = [1.5, 2.5]
[[variants]]
name = "all"
settings.factorization = { distribution = "fixed", num_ar_steps = "L" }

[[claims]]
text = "One is better than all."
better = ["one @ 1"]
worse = ["all @ 1"]
"""
ONE = 'title = ""\nquestion = ""\nar_steps = [1]\n[[variants]]\nname = "other"\n'
DATA = """
recipes = ["digits"]
num_tokens = 16
features = "pixels:4"
count = 20
[settings.model]
hidden_size = 16
depth = 1
[settings.train]
images = 64
batch_size = 32
evaluate_every = 0
[sample]
sampler = "ddim"
diffusion_steps = [2]
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "two.toml").write_text(RECIPE)
    (tmp_path / "small.toml").write_text(DATA)
    return [
        "study", str(tmp_path / "two.toml"), "--data", str(tmp_path / "small.toml"), "--workers", "1",
        "--out", str(tmp_path / "out"), "--seeds", "0", "1",
    ]  # fmt: skip


def changed(command, **options):
    command = list(command)
    for name, values in options.items():
        place = command.index(f"--{name}") + 1
        command[place : len(command) if name == "seeds" else place + 1] = values
    return command


def test_trains_measures_and_writes(command, tmp_path, capsys):
    assert run(command) == 0
    out = tmp_path / "out" / "small" / "two"
    rows = list(csv.DictReader((out / "results.csv").open()))
    found = {(r["variant"], r["seed"], r["ar_steps"]) for r in rows}
    assert found == {(v, s, k) for v in ("one", "all") for s in "01" for k in "12"}, "S = 32 has no tokens"
    assert {r["paper"] for r in rows if r["variant"] == "one" and r["figure"] == "frechet"} == {"1.5", "2.5"}
    table = (out / "results.md").read_text()
    assert "| one | " in table and "1.5" in table and "One is better than all." in table
    assert (out / "results.png").stat().st_size > 5000

    trained = [p for job in (out.parent / "runs").glob("*/seed-*") for p in checkpoints_of(job)]
    times = {path: path.stat().st_mtime_ns for path in trained}
    figures = next((out.parent / "runs").glob("*/seed-0/figures.json"))
    first = json.loads(figures.read_text())
    key = next(iter(first))
    figures.write_text(json.dumps({key: first[key]}))  # as if it had been stopped after one
    capsys.readouterr()
    assert run(command) == 0
    assert "1 of 4 runs to measure" in capsys.readouterr().out
    again = json.loads(figures.read_text())
    for one in (*again.values(), *first.values()):
        assert one.pop("seconds") > 0
    assert again == first, "measured again, it is the same"
    assert {path: path.stat().st_mtime_ns for path in trained} == times, "nothing was trained again"
    assert qualities(out) == [row for row in rows if row["figure"] != "seconds"]


def test_a_run_of_another_setting_of_the_same_name_is_refused(command, tmp_path, capsys, monkeypatch):
    """Which another study in the same place made: its figures are not this one's."""
    study, norms = tmp_path / "two.toml", "settings.model = { norm = { eps = 1e-4 } }"
    study.write_text(ONE + norms)
    command = changed(command, seeds=["0"])
    assert run(command) == 0
    study.write_text(ONE + norms.replace("norm", "out_norm"))
    capsys.readouterr()
    assert run(command) == 2
    assert "holds a run with model.out_norm.eps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("lr = 1e-6", "holds a run with train.lr 0.0015, the variant 'other' has 1e-06"),
        ("images = 32", "holds a run with train.images 64, the variant 'other' has 32"),
    ],
)
def test_a_finished_run_of_other_settings_of_training_is_refused(
    command, tmp_path, capsys, settings, message
):
    """Which a --config gives to all variants, so that folders do not tell them: a finished run was taken for
    it, and its figures written as those of the new settings."""
    (tmp_path / "two.toml").write_text(ONE)
    (tmp_path / "other.toml").write_text(f"[train]\n{settings}\n")
    command = changed(command, seeds=["0"])
    assert run(command) == 0
    capsys.readouterr()
    assert run([*command, "--config", str(tmp_path / "other.toml")]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_goes_on_is_measured_anew(command, tmp_path):
    """Its figures were those of the shorter training."""
    (tmp_path / "two.toml").write_text(ONE)
    (tmp_path / "longer.toml").write_text("[train]\nimages = 128\n")
    command = changed(command, seeds=["0"])
    assert run(command) == 0
    before = qualities(tmp_path / "out" / "small" / "two")
    assert run([*command, "--config", str(tmp_path / "longer.toml")]) == 0
    after = qualities(tmp_path / "out" / "small" / "two")
    assert [row["value"] for row in after] != [row["value"] for row in before]


def test_a_run_of_epochs_is_trained_to_its_end(tmp_path, monkeypatch):
    """Not to the images that the settings have beside their epochs."""
    (tmp_path / "one.toml").write_text(ONE)
    settings = {"train": {"epochs": 2.0, "images": 64}}
    study_data = StudyData(recipes=["digits"], num_tokens=16, features="digits", count=10, settings=settings)
    (job,) = jobs_of(load_study(str(tmp_path / "one.toml")), study_data, [0], tmp_path)
    monkeypatch.setattr(study_run, "checkpoints_of", lambda folder: [folder])
    monkeypatch.setattr(study_run, "load_spec", lambda folder: SimpleNamespace(images_seen=seen))
    stored = {"train": {"epochs": 2.0, "images": 3414}}
    monkeypatch.setattr("causalfusion.train.resume.stored_settings", lambda folder: stored)
    seen = 128
    assert not study_run._is_trained(job, study_data)
    seen = 3456
    assert study_run._is_trained(job, study_data)
    stored["train"]["epochs"] = 1.0
    assert not study_run._is_trained(job, study_data), "two are to follow it"


def test_epochs_have_no_parts_with_figures(tmp_path):
    (tmp_path / "one.toml").write_text("budgets = [0.5, 1.0]\n" + ONE)
    settings = {"train": {"epochs": 2.0}}
    study_data = StudyData(recipes=["digits"], num_tokens=16, features="digits", count=10, settings=settings)
    with pytest.raises(UserError, match=r"epochs is 2 in a study with budgets; expected train.images"):
        jobs_of(load_study(str(tmp_path / "one.toml")), study_data, [0], tmp_path)


def test_sampling_of_a_study_is_not_overruled_by_lists_of_the_data(tmp_path):
    """Steps that the study gives, where the data file has a respacing."""
    (tmp_path / "one.toml").write_text(ONE + "[sample]\ndiffusion_steps = [3]\n")
    sample = SampleConfig(sampler="ddim", respacing="10")
    study_data = StudyData(recipes=["digits"], num_tokens=16, features="digits", count=10, sample=sample)
    study = load_study(str(tmp_path / "one.toml"))
    (job,) = jobs_of(study, study_data, [0], tmp_path)
    for found in (job.sampling(study_data, 1), study.sampling(sample)):
        assert (found.respacing, found.diffusion_steps, found.sampler) == ("", [3], "ddim")


def qualities(out):
    """The rows of `results.csv`, without times."""
    rows = csv.DictReader((out / "results.csv").open())
    return [row for row in rows if row["figure"] != "seconds"]


def test_goes_on_with_a_run_that_was_stopped(command, monkeypatch):
    done = []

    def stops(job, study_data, device):
        if done:
            raise KeyboardInterrupt
        study_run_train(job, study_data, device)
        done.append(job.folder)

    study_run_train = study_run._train
    monkeypatch.setattr(study_run, "_train", stops)
    assert run(command) == 130
    monkeypatch.setattr(study_run, "_train", study_run_train)
    before = checkpoints_of(done[0])[-1].stat().st_mtime_ns
    assert run(command) == 0
    assert checkpoints_of(done[0])[-1].stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_workers_find_the_same(command, tmp_path):
    assert run(command) == 0
    alone = (tmp_path / "out" / "small" / "two" / "results.csv").read_text()
    assert run(changed(command, out=[str(tmp_path / "other")], workers=["2"])) == 0
    with_two = (tmp_path / "other" / "small" / "two" / "results.csv").read_text()
    for one, other in zip(csv.reader(alone.splitlines()), csv.reader(with_two.splitlines()), strict=True):
        assert one[:5] == other[:5] and one[6:] == other[6:]
        if one[5] != "value" and one[4] != "seconds":
            assert float(one[5]) == pytest.approx(float(other[5]), rel=1e-4)


def test_tables_have_means_and_spreads(tmp_path):
    study = load_study("ar-weight")
    study_data = StudyData(recipes=["digits"], num_tokens=16, features="digits", count=10)
    figures = {
        (v.name, seed): {1: {"frechet": 2.0 + seed, "accuracy": 0.5 + seed / 10}}
        for v in study.variants
        for seed in (0, 1, 2)
    }
    images = {v.name: 40_000 for v in study.variants}
    write_results(tmp_path, study, study_data, "digits", [0, 1, 2], figures, images)
    table = (tmp_path / "results.md").read_text()
    assert "Training:" not in table, "all saw the same images"
    assert "| λ = 2 | 3 ± 1 | 12.13 | 15.15 | 18.09 |" in table
    assert "| λ = 2 | 60.0% ± 10.0% |" in table


def test_unequal_lengths_of_training_are_told(tmp_path):
    half = Variant(name="half", base="one", share=0.5)
    study = load_study(str(_written(tmp_path)))
    study = replace(study, variants=[*study.variants, half], equal="arithmetic")
    study_data = StudyData(recipes=["digits"], num_tokens=16, features="digits", count=10)
    figures = {(v.name, 0): {1: {"frechet": 2.0}} for v in study.variants}
    write_results(tmp_path, study, study_data, "digits", [0], figures, {"one": 640, "all": 512, "half": 320})
    told = "the same arithmetic for all, but for the shares named; images: one: 640; all: 512; half: 320 (a"
    assert told in (tmp_path / "results.md").read_text()


def _written(folder):
    (folder / "two.toml").write_text(RECIPE)
    return folder / "two.toml"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ["1", "1"]}, "expected one or more different numbers"),
        ({"workers": ["0"]}, "--workers is 0; expected at least 1"),
        ({"data": ["nowhere"]}, "neither a file nor one of"),
    ],
)
def test_bad_input_is_one_line(command, capsys, options, message):
    assert run(changed(command, **options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("ar_steps = [1]", "is missing"),
        (RECIPE.replace("paper = [1.5, 2.5]", "paper = [1, 2, 3, 4]"), "'one' has 4 figures of the paper"),
        (RECIPE.replace('num_ar_steps = "L"', "num_ar_steps = 17"), "the variant 'all': "),
    ],
)
def test_each_study_is_read_and_checked_before_the_first_begins(command, tmp_path, capsys, second, message):
    (tmp_path / "second.toml").write_text(second)
    command.insert(2, str(tmp_path / "second.toml"))
    assert run(command) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out").exists()
