"""`causalfusion plan`, from the command to its files."""

import json
import re
import shutil
import tomllib

import pytest

from causalfusion.cli import run
from causalfusion.evaluate.quality import Quality
from causalfusion.planner import run as planner_run
from causalfusion.saved.folder import latest_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "run"
    small = ["--model.hidden-size", "16", "--model.depth", "1", "--train.evaluate-every", "0"]
    assert run(["train", "--config", "digits", "--train.images", "64", *small, "--out", str(out)]) == 0
    return out


@pytest.fixture
def command(model, tmp_path):
    return [
        "plan", "--model", str(model), "--reference", "digits", "--features", "pixels:4", "--images", "20",
        "--batch-size", "10", "--samplers", "ddim", "--diffusion-steps", "2", "4", "--ar-steps", "1", "2",
        "--guidance-scales", "1", "--out", str(tmp_path / "plan"),
    ]  # fmt: skip


def test_names_the_best_setting_within_the_budget(command, tmp_path, capsys, monkeypatch):
    assert run([*command, "--budget", "30s"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())["settings"].values()
    best = min(found, key=lambda one: one["frechet"])
    steps = " ".join(map(str, best["settings"]["diffusion_steps"]))
    ar_steps = best["settings"]["num_ar_steps"]
    assert f"--sampler ddim --num-ar-steps {ar_steps} --diffusion-steps {steps}" in said
    assert len(found) == 4 and all(one["seconds_per_image"] > 0 for one in found)
    assert (tmp_path / "plan" / "plan.png").stat().st_size > 5000
    table = (tmp_path / "plan" / "plan.md").read_text()
    assert len(re.findall(r"^\| .*ddim", table, re.M)) == 4

    def measured_again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(planner_run, "measure_quality", measured_again)
    monkeypatch.setattr(planner_run, "_seconds", measured_again)
    assert run([*command, "--budget", "30s"]) == 0, "the second time it only reads"


def test_what_is_beyond_the_budget_is_not_measured(command, capsys, monkeypatch):
    times = iter([0.1, 0.1, 0.3, 0.3, 1.0, 1.0, 9.0, 9.0])
    monkeypatch.setattr(planner_run, "_seconds", lambda *_: next(times))
    assert run([*command, "--budget", "200ms"]) == 0
    assert "not measured: 2" in ((planner_run.Path(command[-1]) / "plan.md").read_text())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '{"facts": {}, "settings": {"a": 3}}', '{"facts": {}}', "\x00"]
)
def test_a_damaged_plan_is_one_line(command, tmp_path, capsys, text):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text(text)
    assert run([*command, "--budget", "30s"]) == 2
    assert "plan.json" in capsys.readouterr().err
    assert (tmp_path / "plan" / "plan.json").read_text() == text


def test_bad_input_is_one_line(command, tmp_path, capsys):
    def refused(**options):
        changed = list(command)
        for name, value in {"budget": "1s", **options}.items():
            flag = "--" + name.replace("_", "-")
            if flag in changed:
                changed[changed.index(flag) + 1] = value
            else:
                changed += [flag, value]
        capsys.readouterr()
        assert run(changed) == 2
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if " left" not in line]  # but for the progress
        assert len(lines) == 1
        return error

    assert "such as 200ms" in refused(budget="soon")
    assert "expected at least 2" in refused(images="1")
    assert "the quickest of the 4 settings takes" in refused(budget="1us")
    assert "give another --out" in refused(seed="5")
    command[2] = "shapes"
    assert "has no captions" in refused(out=str(tmp_path / "other"), samplers="dpm++")


def test_at_another_size(command, tmp_path, capsys):
    """Images of a size are compared with the reference at that size, and the file says which it was."""
    sized = [*command, "--budget", "30s", "--diffusion-steps", "2", "--ar-steps", "1", "--size"]
    assert run([*sized, "4x8"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("--size 4x8")
    assert "against digits at 4x8" in (tmp_path / "plan" / "plan.md").read_text()
    assert run([*sized, "8x4"]) == 2
    assert "was measured with size '4x8', now it is '8x4'" in capsys.readouterr().err
    assert run([*sized, "9x8"]) == 2


def test_refines_the_best_setting_confirms_it_and_makes_it_the_models_own(model, command, tmp_path, capsys):
    assert run([*command, "--budget", "30s", "--rounds", "1", "--save"]) == 0
    said = capsys.readouterr().out
    assert "its images are made so from now on" in said and "other prompts and noise" in said
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())["settings"].values()
    confirmed = [one for one in found if one["confirmed"] is not None]
    assert 1 <= len(confirmed) <= 2, "the grid's best and what came of it"
    best = min(confirmed, key=lambda one: one["confirmed"])["settings"]
    own = tomllib.loads((planner_run.read_latest(model, lambda f: f)[1] / "sample.toml").read_text())
    assert own["diffusion_steps"] == best["diffusion_steps"] and own["sampler"] == best["sampler"]
    tried = [one["settings"] for one in found]
    assert {"ddim", "dpm++", "unipc"} <= {one["sampler"] for one in tried}
    assert len(found) == len({json.dumps(one) for one in tried})


def test_what_is_not_varied_is_as_the_model_recommends(command, model, tmp_path, capsys):
    """And the command that is told draws what was measured, on top of the model's own settings."""
    own = shutil.copytree(latest_model(model), tmp_path / "own")
    (own / "sample.toml").write_text(
        'order = "raster"\nsampler = "ddpm"\ntemperature = 0.9\nsizes = [4, 12]\nseed = 5\n'
        "diffusion_steps = [3, 2]\nguidance_interval = [0.1, 0.9]\n"
    )
    command[2] = str(own)
    assert run([*command, "--budget", "30s", "--also", str(own)]) == 0
    tried = [one for one in json.loads((tmp_path / "plan" / "plan.json").read_text())["settings"].values()]
    grid = [one["settings"] for one in tried if not one["model"]]
    assert {(one["order"], one["temperature"], *one["guidance_interval"]) for one in grid} == {
        ("raster", 1, 0.1, 0.9)
    }
    assert {tuple(one["sizes"]) for one in grid} == {()}
    others = [one["settings"] for one in tried if one["model"]]
    assert sorted((one["sizes"], one["diffusion_steps"]) for one in others) == [
        ([], [5]), ([4, 12], [3, 2]),
    ]  # fmt: skip
    for out, among, also in ("main", grid, []), ("any", grid + others, ["--also", str(own)]):
        capsys.readouterr()
        assert run([*command, "--budget", "30s", *also]) == 0
        told = capsys.readouterr().out.splitlines()[-1].split()
        assert run([*told[1:], "--images", "1", "--out", str(tmp_path / out)]) == 0
        drawn = json.loads((tmp_path / out / "settings.json").read_text())["settings"]
        best = min((one for one in tried if one["settings"] in among), key=lambda one: one["frechet"])
        assert drawn == best["settings"]


def test_respacing_is_refused_as_it_overrides_what_is_tried(command, capsys):
    assert run([*command, "--budget", "30s", "--sample.respacing", "10"]) == 2
    assert "expected --diffusion-steps" in capsys.readouterr().err


def test_what_is_confirmed_is_what_is_asked_for(command, tmp_path, capsys, monkeypatch):
    """A plan by accuracy does not take a confirmed distance, found earlier, for a share."""
    monkeypatch.setattr(planner_run, "measure_quality", lambda *_, **__: Quality(5.0, 0.5, 0.1))
    command += ["--budget", "30s", "--rounds", "1"]
    assert run(command) == 0
    assert "(other prompts and noise: Fréchet distance 5)" in capsys.readouterr().out
    for _ in range(2):
        assert run([*command, "--by", "accuracy"]) == 0
        assert "(other prompts and noise: 50.0% as asked)" in capsys.readouterr().out
        path = tmp_path / "plan" / "plan.json"
        path.write_text(re.sub(r',\s*"confirmed_by": \S+', "", path.read_text()))  # as earlier versions did


def test_by_accuracy_needs_something_that_can_tell(command, capsys):
    assert run([*command, "--budget", "30s", "--by", "accuracy"]) == 2
    assert "nothing tells what these images show" in capsys.readouterr().err


def test_further_models_are_measured_as_their_own_folder_says(command, model, tmp_path, capsys, monkeypatch):
    student = tmp_path / "student"
    made = ["distill", str(model), "--steps", "1", "--train.images", "32", "--out", str(student)]
    assert run(made) == 0
    assert run([*command, "--budget", "30s"]) == 0
    planner = monkeypatch.setattr
    times = iter([1e-5] * 8)
    planner(planner_run, "_seconds", lambda *_: next(times))
    capsys.readouterr()
    assert run([*command, "--also", str(student), "--budget", "30us"]) == 0
    assert f"causalfusion sample --model {student} --num-ar-steps" in capsys.readouterr().out
    table = (tmp_path / "plan" / "plan.md").read_text()
    rows = re.findall(
        rf"^\| .*{re.escape(str(student))}: dpm\+\+, S = (\d), 1 diffusion step[ ,]", table, re.M
    )
    assert sorted(rows) == ["1", "2"] and len(re.findall(r"^\| .*ddim", table, re.M)) == 4
    assert len(list(times)) == 4, "the model's own settings are not timed again"
    planner(planner_run, "_seconds", lambda *_: 2e-5)
    assert run([*command, "--also", str(student), "--budget", "30us", "--rounds", "1"]) == 0
    tried = json.loads((tmp_path / "plan" / "plan.json").read_text())["settings"].values()
    refined = {one["settings"]["guidance_scale"] for one in tried if one["seconds_per_image"] == 2e-5}
    assert len(refined) > 1, "the best setting is the student's, and it is changed, as no other is affordable"


def test_a_further_model_of_another_size_is_refused(command, capsys):
    assert run([*command, "--also", "shapes", "--budget", "30s"]) == 2
    assert "makes images of another size" in capsys.readouterr().err


def test_changes_that_the_model_does_not_have_are_not_tried(command, tmp_path, monkeypatch):
    """Half as many steps again as 900 are more than there are levels: the plan ended there, unfinished."""
    monkeypatch.setattr(planner_run, "_seconds", lambda *_: 1e-3)
    monkeypatch.setattr(planner_run, "measure_quality", lambda *_, **__: Quality(5.0, 0.5, 0.1))
    steps = command.index("--diffusion-steps")
    command[steps + 1 : steps + 3] = ["900"]
    assert run([*command, "--budget", "30s", "--rounds", "1"]) == 0
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())["settings"].values()
    tried = {max(one["settings"]["diffusion_steps"]) for one in found}
    assert 600 in tried and max(tried) <= 1000
