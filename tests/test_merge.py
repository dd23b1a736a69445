"""`causalfusion merge`: the weighted sum of models of one kind, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causalfusion import cli
from causalfusion.config import LoraConfig
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.transformer import Transformer
from causalfusion.saved.adapted import merged
from causalfusion.saved.folder import latest_model, load_spec, load_weights, replace_model

SHAPES = Path("shapes")


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> Path:
    """The packaged model with other weights, in float32."""
    folder, base = tmp_path_factory.mktemp("merge") / "moved", latest_model(SHAPES)
    pipeline = Pipeline.load("shapes")
    torch.manual_seed(0)
    weights = {name: w.float() + 0.01 * torch.randn(w.shape) for name, w in load_weights(base).items()}
    spec = replace(load_spec(base), images_seen=7, class_dropout=0.3)
    replace_model(folder, spec, weights, tokenizer=pipeline.tokenizer)
    return folder


@pytest.mark.parametrize(("shares", "second"), [([], 0.5), (["--shares", "-0.5", "1.5"], 1.5)])
def test_weights_are_the_sum_and_the_rest_is_the_first_models(moved, tmp_path, capsys, shares, second):
    out = tmp_path / "merged"
    assert cli.run(["merge", "shapes", str(moved), *shares, "--out", str(out)]) == 0
    first, other, found = load_weights(latest_model(SHAPES)), load_weights(moved), load_weights(out)
    for name, value in found.items():
        expected = (1 - second) * first[name].double() + second * other[name].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-7, rtol=1e-6)
    assert found.keys() == first.keys() and {value.dtype for value in found.values()} == {torch.float32}
    spec, base = load_spec(out), load_spec(latest_model(SHAPES))
    assert spec.images_seen == max(7, base.images_seen) and spec.origin.endswith(str(moved))
    assert replace(spec, origin="") == replace(base, origin="")
    assert (out / "sample.toml").read_bytes() == (latest_model(SHAPES) / "sample.toml").read_bytes()
    images = Pipeline.load(str(out)).generate(prompts=["a small red circle"])
    assert images.shape == (1, 3, 32, 32)
    said = capsys.readouterr().out
    assert f"causalfusion sample --model {out}" in said and "% of their size away" in said


def test_low_rank_additions_are_merged_as_what_they_add(tmp_path):
    base, tokenizer = load_spec(latest_model(SHAPES)), Pipeline.load("shapes").tokenizer
    spec = replace(base, model=replace(base.model, lora=LoraConfig(rank=2, alpha=2)))
    plain = {name: value.float() for name, value in load_weights(latest_model(SHAPES)).items()}
    expected, models = [], ["shapes"]
    for number in range(2):
        torch.manual_seed(number)
        layers = Transformer(spec.model).state_dict()
        low = {n: 0.1 * torch.randn(v.shape) for n, v in layers.items() if n.endswith(("lora_a", "lora_b"))}
        replace_model(tmp_path / str(number), spec, plain | low, tokenizer=tokenizer)
        models.append(str(tmp_path / str(number)))
        expected.append(merged(spec, plain | low)[1])
    out = tmp_path / "out"
    assert cli.run(["merge", *models, "--shares", "0.5", "0.25", "0.25", "--out", str(out)]) == 0
    assert load_spec(out).model == base.model
    found = load_weights(out)
    assert found.keys() == plain.keys()
    for name, value in found.items():
        mean = 0.5 * plain[name] + 0.25 * (expected[0][name] + expected[1][name])
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-5)


def test_a_model_made_of_others_is_not_replaced(moved, tmp_path, capsys):
    out, line = tmp_path / "merged", ["merge", "shapes", str(moved), "--out"]
    assert cli.run([*line, str(out)]) == 0
    weights = (out / "model.safetensors").read_bytes()
    assert cli.run([*line, str(out), "--shares", "0.25", "0.75"]) == 2
    said = capsys.readouterr().err
    assert f"{out} holds another model, 0.5 x shapes + 0.5 x {moved}; give another --out" in said
    assert (out / "model.safetensors").read_bytes() == weights
    assert cli.run([*line, str(out)]) == 0, "the same command again"


def test_a_model_with_other_adapters_is_not_replaced(tmp_path, make_adapter, capsys):
    one, other = (make_adapter(tmp_path / str(seed), SHAPES, seed=seed) for seed in (0, 1))
    line = ["convert", "merge", "shapes", "--out", str(tmp_path / "out"), "--adapters"]
    assert cli.run([*line, str(one)]) == 0 and cli.run([*line, str(one)]) == 0
    assert load_spec(tmp_path / "out").origin == f"shapes + 1 x {one}"
    capsys.readouterr()
    assert cli.run([*line, str(other)]) == 2
    assert f"holds another model, shapes + 1 x {one}; give another --out" in capsys.readouterr().err


def test_other_classes_are_told_without_listing_them(moved, tmp_path, capsys):
    other = tmp_path / "other"
    spec = replace(load_spec(moved), class_names=["a", "b"])
    replace_model(other, spec, load_weights(moved), tokenizer=Pipeline.load("shapes").tokenizer)
    assert cli.run(["merge", str(moved), str(other), "--out", str(tmp_path / "merged")]) == 2
    assert f"{other} has other classes than {moved}; expected models of one kind" in capsys.readouterr().err


def test_what_cannot_be_merged_is_said_and_nothing_is_written(moved, tmp_path, capsys, digits_run):
    out = tmp_path / "merged"
    for line, says in (
        (["shapes"], "two or more"),
        (["shapes", str(moved), "--shares", "0.5", "0.6"], "expected 2 numbers, one a model, that sum to 1"),
        (["shapes", str(moved), "--shares", "1"], "expected 2 numbers"),
        (["shapes", str(digits_run)], "expected models of one kind"),
        (["shapes", str(moved), "--shares", "nan", "1"], "sum to 1"),
    ):
        assert cli.run(["merge", *line, "--out", str(out)]) == 2, line
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and says in said[0]
        assert not out.exists()
    assert cli.run(["merge", "shapes", str(moved), "--out", str(moved.parent)]) == 2
    assert "which is merged" in capsys.readouterr().err and (moved / "config.json").exists()
