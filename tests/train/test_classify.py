"""`finetune --task classify`: what is learned from what, that it is a run like any other, and its use."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from causalfusion import cli
from causalfusion.config import ClassifyConfig
from causalfusion.data.digits import Digits
from causalfusion.generate.classifier import Classifier
from causalfusion.generate.pipeline import Pipeline
from causalfusion.rng import derive_generator
from causalfusion.saved.folder import latest_model, load_spec, load_weights, save_spec
from causalfusion.train.classification import layer_factor, mixed, rectangle
from causalfusion.train.log import read_log

FAST = {"--data.source": "digits", "--train.images": "64", "--train.batch-size": "16",
        "--train.log-every": "1", "--train.evaluate-every": "10", "--train.lr-schedule": "constant",
        "--train.warmup-images": "0", "--task": "classify"}  # fmt: skip


def finetune(model: Path | str, out: Path, **options: object) -> int:
    given = FAST | {f"--{name.replace('__', '.').replace('_', '-')}": str(v) for name, v in options.items()}
    return cli.run(
        ["finetune", str(model), *(word for pair in given.items() for word in pair), "--out", str(out)]
    )


@pytest.fixture(scope="module")
def mine(digits_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("classify") / "mine"
    assert finetune(digits_run, out, train__lr=3e-3, train__images=640, mixup=0.4, cutmix=0.4) == 0
    return out


def test_its_log_has_held_out_accuracy_and_it_learns(mine, digits_run):
    records = read_log(mine / "log.jsonl")
    found = [r for r in records if r["kind"] == "accuracy"]
    assert len(found) == 4 and all(0 <= r["low"] <= r["accuracy"] <= r["high"] <= 1 for r in found)
    assert all(r["images"] == 90 for r in found), "the held-out images, 5 %"
    assert found[-1]["mean"] < found[0]["mean"] < 2.6
    settings = json.loads((latest_model(mine) / "state" / "run.json").read_text())
    assert settings["finetune"]["task"] == "classify" and settings["classify"]["mixup"] == 0.4
    weights, before = load_weights(latest_model(mine)), load_weights(latest_model(digits_run))
    assert not any(name.startswith("classifier") for name in weights), "the model itself is without it"
    assert not weights["blocks.0.attn.qkv.weight"].equal(before["blocks.0.attn.qkv.weight"])
    assert weights["image_out.weight"].equal(before["image_out.weight"]), (
        "what predicts images learns nothing"
    )


def test_a_classifier_is_the_models_last_features_and_a_linear_layer(mine):
    classifier = Classifier.load(mine)
    pipeline = Pipeline.load(latest_model(mine))
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    weights = load_file(latest_model(mine) / "classifier.safetensors")
    features = pipeline.features(images, layer=-1)
    normed = torch.nn.functional.layer_norm(
        features, features.shape[1:], weights["classifier.0.weight"], weights["classifier.0.bias"]
    )
    logits = normed @ weights["classifier.1.weight"].T + weights["classifier.1.bias"]
    torch.testing.assert_close(classifier.probabilities(images), logits.softmax(1), atol=1e-5, rtol=1e-4)
    assert classifier.class_names == [str(digit) for digit in range(10)]


def test_the_accuracy_in_the_log_is_that_of_the_classifier_in_use(mine):
    from causalfusion.config import DataConfig
    from causalfusion.data.loader import load_indices, split_holdout

    source = Digits()
    _, held = split_holdout(len(source), DataConfig().holdout)
    batch = load_indices(source, held, DataConfig())
    found = Classifier.load(mine).probabilities(batch.images).argmax(1)
    last = [r for r in read_log(mine / "log.jsonl") if r["kind"] == "accuracy"][-1]
    assert float((found == batch.labels).float().mean()) == pytest.approx(last["accuracy"])


def test_the_command_tells_classes_of_files(mine, tmp_path, capsys, digits_run):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    out = tmp_path / "classes.jsonl"
    assert cli.run(["classify", str(tmp_path), "--model", str(mine), "--top", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[0].startswith(f"{tmp_path / '0.png'}: ") and said[0].endswith(" %")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(len(row["classes"]) == 2 and 0 < sum(row["classes"].values()) <= 1 for row in rows)
    assert cli.run(["classify", str(tmp_path / "0.png"), "--model", str(digits_run)]) == 2
    assert "--task classify" in capsys.readouterr().err


def test_several_processes_do_not_do_the_same_work(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(["classify", "a.png"]) == 2
    assert "classify runs in one process; start it without torchrun" in capsys.readouterr().err


def test_classes_that_share_a_name_are_told_one_by_one(mine, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(latest_model(mine), folder)
    names = ["zero", *["crane"] * 8, "nine"]
    save_spec(folder, replace(load_spec(folder), class_names=names))
    Image.new("L", (8, 8), 90).save(tmp_path / "photo.png")
    out = tmp_path / "classes.jsonl"
    line = ["classify", str(tmp_path / "photo.png"), "--model", str(folder), "--top", "10"]
    assert cli.run([*line, "--out", str(out)]) == 0
    found = json.loads(out.read_text())["classes"]
    assert set(found) == {"zero", *(f"crane (index:{k})" for k in range(1, 9)), "nine"}
    assert sum(found.values()) == pytest.approx(1, abs=1e-4)


def test_a_published_classifier_is_whole(mine, tmp_path, capsys):
    assert cli.run(["publish", str(mine), "--out", str(tmp_path / "published")]) == 0
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    expected = Classifier.load(mine).probabilities(images)
    assert Classifier.load(tmp_path / "published").probabilities(images).equal(expected)
    config = tmp_path / "published" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"class_names": settings["class_names"][:3]}))
    capsys.readouterr()
    assert cli.run(["classify", str(tmp_path), "--model", str(tmp_path / "published")]) == 2
    Image.new("L", (8, 8)).save(tmp_path / "two\nlines.png")
    assert cli.run(["classify", str(tmp_path), "--model", str(tmp_path / "published")]) == 2
    assert "names 3 classes, the model has 10" in capsys.readouterr().err
    assert cli.run(["classify", str(tmp_path), "--model", str(mine)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_width_of_a_classifiers_average_is_chosen_after_training(digits_run, tmp_path, capsys):
    """Its snapshots have the classifier's weights, and so has the model that is made of them."""
    run, out = tmp_path / "run", tmp_path / "average"
    assert finetune(digits_run, run, train__ema_widths=0.1, train__ema_snapshot_images=32) == 0
    assert cli.run(["ema", str(run), "--width", "0.1", "--out", str(out)]) == 0, capsys.readouterr().err
    snapshot = load_file(sorted((run / "ema_snapshots").iterdir())[-1])
    found = load_file(out / "model.safetensors") | load_file(out / "classifier.safetensors")
    for name, value in snapshot.items():
        torch.testing.assert_close(found[name.partition("/")[2]], value.float(), atol=1e-3, rtol=1e-3)
    assert not any(name.startswith("classifier") for name in load_file(out / "model.safetensors"))
    assert Classifier.load(out).probabilities(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_resumed_classification_is_the_same_to_the_bit(digits_run, tmp_path):
    options = {"mixup": 0.8, "cutmix": 1.0, "train__checkpoint_every": 2, "train__lr": 1e-3}
    assert finetune(digits_run, tmp_path / "whole", **options) == 0
    assert finetune(digits_run, tmp_path / "parts", **options, train__images=32) == 0  # fmt: skip
    assert finetune(digits_run, tmp_path / "parts", **options) == 0
    for name in ("model", "raw", "classifier", "state/classifier", "state/optimizer"):
        one, two = (
            load_file(latest_model(tmp_path / out) / f"{name}.safetensors") for out in ("whole", "parts")
        )
        assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one), name


def test_other_classes_and_other_models(tmp_path, capsys):
    """Classes of the data alone are told apart, whatever the model drew; a model of captions is read behind
    an empty text."""
    for name, level in (("dark", 30), ("light", 220)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(24):
            pixels = np.random.default_rng(number).integers(level - 20, level + 20, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    out = tmp_path / "out"
    data = {"data__source": "folder", "data__path": tmp_path / "photos", "data__holdout": 0.25}
    assert finetune("shapes", out, **data, train__batch_size=8, train__images=32, train__lr=1e-3) == 0
    assert load_spec(latest_model(out)).class_names == ["dark", "light"]
    assert Classifier.load(out).probabilities(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    for image in (tmp_path / "photos" / "dark").iterdir():
        image.rename(tmp_path / "photos" / image.name)
    (tmp_path / "photos" / "dark").rmdir()
    shutil.rmtree(tmp_path / "photos" / "light")
    assert finetune("shapes", tmp_path / "none", **data, train__batch_size=8) == 2
    assert "the data have no labels; expected images of two or more classes" in capsys.readouterr().err


def test_mixing_keeps_what_it_says():
    generator = derive_generator(0, "mix")
    tokens, classes = torch.randn(6, 16, 3), torch.eye(6)
    for _ in range(20):
        both = ClassifyConfig(mixup=1.0, cutmix=1.0)
        found, shares = mixed(tokens, classes, both, (4, 4), generator)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        share = float(shares[0, 0])
        mean = share * tokens + (1 - share) * tokens.flip(0)
        taken = (found == tokens.flip(0)).all(2)
        if not torch.allclose(found, mean, atol=1e-6):
            assert float(taken[0].float().mean()) == pytest.approx(1 - share, abs=1e-6)
            assert torch.where(taken[..., None], tokens.flip(0), tokens).equal(found)
    same, shares = mixed(tokens, classes, ClassifyConfig(), (4, 4), generator)
    assert same is tokens and shares is classes
    areas = [float(rectangle((8, 8), 0.25, generator).float().mean()) for _ in range(200)]
    assert max(areas) == 0.25 and min(areas) < 0.15, "at an edge less of it is inside"


def test_learning_rates_fall_towards_the_input():
    names = ["image_in.weight", "encoder.blocks.0.mlp", "encoder.blocks.1.mlp", "blocks.0.mlp",
             "blocks.2.mlp", "classifier.1.weight"]  # fmt: skip
    found = [layer_factor(name, 2, 3, 0.5) for name in names]
    assert found == [0.5**6, 0.5**5, 0.5**4, 0.5**3, 0.5**1, 1.0]


def test_what_cannot_be_classified_is_refused(digits_run, tmp_path, capsys):
    def said(**options: object) -> str:
        assert finetune(digits_run, tmp_path / "run", **options) == 2
        assert not (tmp_path / "run" / "checkpoints").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "label_smoothing is 1.0" in said(label_smoothing=1)
    assert "layer_decay is 0.0" in said(layer_decay=0)
    assert "data.holdout is 0; expected a share" in said(data__holdout=0)
    assert "--task classify trains all weights" in said(adapter="lora")
    assert replace(ClassifyConfig(), mixup=1.0).mixup == 1
