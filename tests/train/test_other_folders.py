"""Commands that go on from a run, started in another folder than its training was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.cli import run
from causalfusion.data.guess import is_there
from causalfusion.interop.publish import Publication, write_publication
from causalfusion.saved.folder import latest_model
from causalfusion.saved.started import autoencoder_place, found_from, started_in
from causalfusion.train.data_of_run import data_of_training
from refusal import refused

SMALL = [
    *("--model.hidden-size", "16", "--model.depth", "1", "--model.num-heads", "2", "--codec.patch-size", "4"),
    *("--train.batch-size", "16", "--train.evaluate-every", "0", "--train.sample-minutes", "0"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with images in two classes, and a run that was started in it with relative paths."""
    folder = tmp_path_factory.mktemp("there") / "project [1]"  # which a pattern would read otherwise
    rng = np.random.default_rng(0)
    for name in ("blue", "red"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            image.save(folder / "photos" / name / f"{number}.png")
    (folder / "words.txt").write_text("blue a blue one\nred a red one\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(line_of("photos", "words.txt", "runs/x", 32)) == 0
    return folder


def line_of(photos: str, words: str, out: str, images: int) -> list[str]:
    line = ["train", photos, "--data.holdout", "0.25", "--train.images", str(images), "--out", out, *SMALL]
    return [*line, "--data.captions", "class_names", "--data.class-words", words, "--text.tokenizer", "train"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_probe_and_a_student_find_their_models_data(project, elsewhere):
    model = str(project / "runs" / "x")
    assert run(["probe", model, "--levels", "clean", "--layers", "-1", "--kind", "knn", "--out", "p"]) == 0
    length = ["--train.images", "16", "--train.batch-size", "16"]
    assert run(["distill", model, "--steps", "1", *length, "--out", "fast"]) == 0
    kept = json.loads((latest_model(Path("fast")) / "state" / "run.json").read_text())["data"]
    assert kept["path"] == str(project / "photos") and kept["class_words"] == str(project / "words.txt")


def test_a_path_stays_as_it_was_given_in_the_folder_of_the_training(project, monkeypatch):
    monkeypatch.chdir(project)
    assert data_of_training("runs/x")["path"] == "photos"
    data = json.loads((latest_model(Path("runs/x")) / "state" / "run.json").read_text())["data"]
    assert data["path"] == "photos", "a copy on another machine finds it in a project like this"


def test_a_run_goes_on_from_another_folder(project, elsewhere, capsys):
    shutil.copytree(project / "runs" / "x", "x")
    words = str(project / "words.txt")
    shutil.copyfile(words, "others.txt")
    error = refused(capsys, *line_of(str(project / "photos"), "others.txt", "x", 64))
    assert "begun with data.class_words = 'words.txt', now it is 'others.txt'" in error
    assert run(line_of(str(project / "photos"), words, "x", 64)) == 0
    assert started_in(latest_model(Path("x"))) == str(elsewhere)


def test_data_that_are_nowhere_are_one_line(project, elsewhere, capsys):
    shutil.copytree(project, "moved")
    shutil.rmtree("moved/photos")
    for file in Path("moved/runs/x").rglob("data.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"folder": str(elsewhere / "moved")}))
    for line in (["probe", "moved/runs/x"], ["distill", "moved/runs/x", "--steps", "1", "--out", "fast"]):
        error = refused(capsys, *line)
        assert f"moved/runs/x was trained on data.path photos, which is neither in {elsewhere}/moved" in error
        assert "nor here; give " in error and "--data.path PATH" in error
    given = ["--data.path", str(project / "photos")]
    line = ["probe", "moved/runs/x", "--levels", "clean", "--layers", "-1", "--kind", "knn"]
    assert run([*line, *given, "--out", "p"]) == 0


def test_a_run_of_an_earlier_version_looks_in_the_current_folder(project, elsewhere, capsys):
    shutil.copytree(project / "runs" / "x", "x")
    for file in Path("x").rglob("data.json"):
        kept = json.loads(file.read_text())
        del kept["folder"]
        file.write_text(json.dumps(kept))
    assert "data.path photos, which is not here; give" in refused(capsys, "probe", "x")
    shutil.copytree(project / "photos", "photos")
    assert data_of_training("x")["path"] == "photos"


def test_what_is_published_does_not_tell_the_folder(project, elsewhere):
    latest = latest_model(project / "runs" / "x")
    assert started_in(latest) == str(project)
    write_publication(project / "runs" / "x", elsewhere / "out", "me/x", Publication())
    for file in (elsewhere / "out").rglob("*"):
        assert file.is_dir() or str(project.parent).encode() not in file.read_bytes(), file


def test_an_autoencoder_is_found_from_the_folder_of_the_training(project, elsewhere):
    (project / "vae").mkdir(exist_ok=True)
    latest = latest_model(project / "runs" / "x")
    assert autoencoder_place(latest, "vae") == str(project / "vae")
    assert autoencoder_place(latest, "some/vae-of-the-hub") == "some/vae-of-the-hub"


def test_patterns_are_found_and_what_is_elsewhere_is_left_as_it_is(tmp_path, elsewhere):
    start = tmp_path / "a [x]"
    (start / "shards").mkdir(parents=True)
    for number in range(2):
        (start / "shards" / f"{number:02d}.tar").touch()
    for pattern in ("shards/*.tar", "shards/{00..01}.tar", "./shards/0?.tar"):
        found = found_from(str(start), pattern)
        assert found != pattern and is_there(found) and not is_there(pattern)
    for other in ("", "none/*.tar", "user/name", "s3://bucket/00.tar", "~/photos", "/photos"):
        assert found_from(str(start), other) == other
    (tmp_path / "shards").mkdir()
    assert found_from("", "shards") == found_from(str(tmp_path), "shards") == "shards"
