"""`causalfusion probe`, from the command to its files."""

import json

import numpy as np
import pytest
from PIL import Image

from causalfusion.cli import run
from causalfusion.errors import UserError
from causalfusion.probe import cache
from causalfusion.probe import run as probe_run
from causalfusion.probe.figures import KnownFigures
from refusal import refused


@pytest.fixture
def model(digits_run):
    return digits_run


@pytest.fixture
def command(model, tmp_path):
    """The command line, with other options where they are given."""
    plain = {"layers": "0 -1", "levels": "clean 0.2", "kind": "linear knn", "images": "200"}
    plain["out"] = str(tmp_path / "probe")

    def line(**options: str) -> list[str]:
        given = {**plain, **options}
        words = ([f"--{name.replace('_', '-')}", *value.split()] for name, value in given.items())
        return ["probe", str(model), *(word for each in words for word in each)]

    return line


def test_a_sweep_is_measured_once(command, tmp_path, capsys, monkeypatch):
    assert run(command()) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())["figures"].values()
    assert {(f["kind"], f["layer"], f["level"]) for f in found} == {
        (kind, layer, level) for kind in ("linear", "knn") for layer in (0, 2) for level in ("clean", "0.2")
    }
    for figure in found:
        assert figure["low"] < figure["accuracy"] < figure["high"]
        assert figure["images"] == 359, "what training held out"
    assert max(f["accuracy"] for f in found if f["level"] == "clean") > 0.4
    best = min((f for f in found if f["kind"] == "knn"), key=lambda f: (-f["validation"], f["layer"]))
    assert f"best on validation images: knn, layer {best['layer']}" in said
    assert (tmp_path / "probe" / "probe.png").stat().st_size > 5000
    table = (tmp_path / "probe" / "probe.md").read_text()
    assert table.count("**") == 4 and "## linear" in table and "learned from 200" in table

    def again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(cache, "read_layers", again)
    assert run(command(neighbours="5")) == 0, "other probes need no other features"
    monkeypatch.setattr(probe_run, "knn", again)
    assert run(command()) == 0, "the second time it only reads"


def test_an_interrupted_pass_goes_on_where_it_was(command, tmp_path, monkeypatch):
    options = {"levels": "0.2", "kind": "linear attentive", "steps": "3", "batch_size": "50"}
    line = command(**options)
    assert run(command(**options, out=str(tmp_path / "whole"))) == 0
    monkeypatch.setattr(cache, "_SECONDS", 0.0)
    real, calls = cache.read_layers, []

    def stops(*args, **options):
        calls.append(options["image_indices"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(cache, "read_layers", stops)
    assert run(line) == 130
    assert run(line) == 0
    assert calls[3] == calls[2], "the third batch is the first of the second time"
    for form in ("pooled", "tokens"):
        for split in ("training", "held-out"):
            a, b = (
                np.load(tmp_path / out / "features" / f"{split}-0.2" / f"{form}-002.npy")
                for out in ("whole", "probe")
            )
            assert np.array_equal(a, b)
    assert not list((tmp_path / "probe").rglob("*unfinished*"))


def test_held_out_images_from_elsewhere(command, tmp_path):
    """Classes are matched by name, whatever their numbers are there."""
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    folder = tmp_path / "test"
    for number in range(300):
        if labels[number] >= 3:
            (folder / str(labels[number])).mkdir(parents=True, exist_ok=True)
            grey = np.round(pixels[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
            Image.fromarray(grey).save(folder / str(labels[number]) / f"{number}.png")
    assert run(command(levels="clean", test=str(folder))) == 0
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())["figures"].values()
    assert max(f["accuracy"] for f in found) > 0.4
    assert {f["images"] for f in found} == {int((labels[:300] >= 3).sum())}


def test_held_out_images_from_elsewhere_have_noise_of_their_own(command, tmp_path):
    """With that of the training images of the same numbers, those of folders sorted alike were told apart by
    it, whatever they show."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(40):
            folder = tmp_path / split / "abcd"[number // 10]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number:02d}.png")
    line = command(levels="1", kind="knn", layers="0", neighbours="1", images="40", test=f"{tmp_path}/test")
    assert run([*line, "--data.source", "folder", "--data.path", str(tmp_path / "train")]) == 0
    (found,) = json.loads((tmp_path / "probe" / "probe.json").read_text())["figures"].values()
    assert found["accuracy"] < 0.6, "at pure noise, a guess of four"


def test_bad_input_is_one_line(command, model, tmp_path, capsys):
    for place in (tmp_path / name for name in ("plain", "one/cat", "two/cat", "two/dog")):
        place.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(place / f"{number}.png")
    for options, words in (
        ({"layers": "7"}, "expected 0 (what enters the first block) to 2"),
        ({"layers": "first"}, "--layers has 'first'"),
        ({"levels": "loud"}, "--levels is 'loud'; expected clean"),
        ({"levels": "0.1 0.1"}, "each once"),
        ({"levels": "2000"}, "a timestep up to 1000"),
        ({"data.path": str(tmp_path / "plain")}, "no labels; expected images of two or more classes"),
        ({"data.path": str(tmp_path / "one")}, "one class alone, 'cat'"),
        ({"test": str(tmp_path / "two")}, "has a class 'cat', which digits has not"),
        ({"data.holdout": "0"}, "no image is held out"),
        ({"neighbours": "190"}, "--neighbours is 190"),
        ({"kind": "knn", "steps": "9"}, "--steps 9 would change nothing, as it needs --kind attentive"),
        ({"kind": "linear", "neighbours": "9"}, "as it needs --kind knn"),
        ({"data.image-size": "16"}, "the size of a probe's images is --size"),
        ({"data.flip": "true"}, "--data.flip is for training"),
        ({"data.cache": str(tmp_path)}, "--data.cache is for training"),
        ({"data.subset": "x"}, "as it needs --data.source datasets, not digits"),
    ):
        assert words in refused(capsys, *command(**options, out=str(tmp_path / "other"))), options
    assert "such as --data.path PATH" in refused(capsys, "probe", "shapes")
    assert "probe needs a model" in refused(capsys, "probe")
    assert run(command()) == 0
    assert "was measured with seed 0, now it is 1" in refused(capsys, *command(seed="1"))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '{"facts": {}}', '{"facts": {}, "figures": {"a": 3}}', "\x00"]
)
def test_a_damaged_file_is_one_line(command, tmp_path, capsys, text):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "probe.json").write_text(text)
    assert "probe.json" in refused(capsys, *command())


def test_damaged_features_are_one_line(command, tmp_path, capsys):
    assert run(command(kind="linear")) == 0
    (tmp_path / "probe" / "features" / "training-clean" / "pooled-002.npy").write_bytes(b"\x93NUMPY")
    assert "is damaged; delete it" in refused(capsys, *command(kind="knn"))


def test_adapters_change_what_is_probed_and_are_told(command, model, make_adapter, tmp_path, capsys):
    adapter = make_adapter(tmp_path / "heart", model)
    options = {"layers": "-1", "levels": "clean", "kind": "linear"}
    assert run(command(**options)) == 0
    line = command(**options, adapters=str(adapter), adapter_weights="4")
    assert "was measured with model" in refused(capsys, *line), "without the adapter"
    line[line.index("--out") + 1] = str(tmp_path / "adapted")
    assert run(line) == 0
    plain, adapted = (
        json.loads((tmp_path / name / "probe.json").read_text()) for name in ("probe", "adapted")
    )
    assert adapted["facts"]["adapters"].startswith("heart ") and "adapters" not in plain["facts"]
    assert adapted["facts"]["model"] != plain["facts"]["model"]


def test_quantized_weights_are_what_is_probed(command, tmp_path, capsys):
    pytest.importorskip("torchao")
    options = {"layers": "-1", "levels": "clean", "kind": "linear"}
    assert run(command(**options)) == 0
    line = command(**options, quantize="int8")
    assert "was measured with" in refused(capsys, *line)
    line[line.index("--out") + 1] = str(tmp_path / "int8")
    assert run(line) == 0
    facts = json.loads((tmp_path / "int8" / "probe.json").read_text())["facts"]
    assert facts["quantize"] == "int8"


def test_what_was_measured_otherwise_is_not_taken_for_the_usual(tmp_path):
    """Facts that are told only where they are not the usual: quantized weights, adapters."""
    usual = {"model": "a"}
    KnownFigures.open(tmp_path, {**usual, "quantize": "int8"})
    with pytest.raises(UserError, match="was measured with quantize 'int8', now it is 'none'"):
        KnownFigures.open(tmp_path, usual)
