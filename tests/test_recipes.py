"""Every recipe that is a run: what it costs is known without its data."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from causalfusion import cli
from causalfusion.config.recipes import (
    DataFacts,
    load_config,
    load_facts,
    load_layer,
    merge,
    recipe_names,
)
from causalfusion.errors import UserError
from causalfusion.estimate.command import run
from causalfusion.estimate.planned import plan_run, read_settings

OF_FINETUNE = [name for name in recipe_names() if "finetune" in load_layer(name)]
RUNS = [name for name in recipe_names() if "data" in load_layer(name) and name not in OF_FINETUNE]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory in which the paths of recipes lead nowhere."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", OF_FINETUNE)
def test_what_goes_on_from_a_model_is_not_estimated_without_it(name: str):
    with pytest.raises(UserError, match="to go on from a model"):
        run([name], gpu="h100")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("nowhere")
def test_a_run_is_estimated_without_its_data(name: str, capsys: pytest.CaptureFixture[str]):
    assert run([name], gpu="h100") in (0, 1)
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "tokens", "classes"),
    [
        ("cifar10", 64, 10),
        ("imagenet256", 256, 1000),
        ("imagenet512", 1024, 1000),
        ("ablation256", 256, 1000),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_what_a_recipe_says_of_its_data_counts(name: str, tokens: int, classes: int):
    planned = plan_run(read_settings([name], []), facts=load_facts([name]))
    assert (planned.config.model.num_tokens, planned.config.model.num_classes) == (tokens, classes)
    assert not any("classes" in note for note in planned.assumptions)


@pytest.mark.usefixtures("nowhere")
def test_other_data_are_what_the_command_line_says():
    settings = read_settings(["cifar10"], ["--data.image-size", "64", "--model.num-classes", "3"])
    model = plan_run(settings, facts=load_facts(["cifar10"])).config.model
    assert (model.num_tokens, model.num_classes) == (256, 3)


def test_facts_are_no_settings_of_a_run():
    assert (load_config("cifar10").model.num_classes, load_config("cifar10").data.image_size) == (0, 0)
    assert load_facts(["digits"]) == DataFacts()


@pytest.mark.parametrize("text", ["facts = 3", "[facts]\nclasses = 'ten'", "[facts]\nside = 3"])
def test_facts_are_checked(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="facts"):
        load_facts([str(path)])


@pytest.mark.parametrize(
    "content",
    [b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, b"a = 1\na = 2", b"\xff", b"base = [3]", b"base = 'S'"],
)
def test_damaged_toml_is_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.toml"):
        load_layer(str(path))


def test_a_byte_order_mark_is_no_part_of_toml(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfout = 'here'\n")
    assert load_layer(str(path)) == {"out": "here"}


@pytest.mark.parametrize(
    ("table", "line", "left"),
    [
        ("sample = { sizes = [32, 32] }", "--num-ar-steps 4", {"sample.sizes"}),
        ("sample = { sizes = [32, 32] }", "--step-sizes cosine", {"sample.sizes"}),
        ("sample = { sizes = [32, 32] }", "--sizes 60 4 --num-ar-steps 4", set()),
        ("sample = { given_order = [1, 0], sizes = [2] }", "--order raster", {"sample.given_order"}),
        ("sample = { respacing = 'ddim20' }", "--diffusion-steps 9", {"sample.respacing"}),
        ("sample = { sizes = [32, 32] }", "--guidance-scale 2", set()),
        (
            "sample = { sampler = 'sde', temperature = 0.9, last_step = 0.05 }",
            "--sampler dpm++",
            {"sample.temperature", "sample.last_step"},
        ),
        ("sample = { sampler = 'sde', temperature = 0.9 }", "--sampler sde_heun", set()),
        (
            "sample = { sampler = 'ddim', eta = 0.5, temperature = 0.9 }",
            "--sampler unipc --eta 0",
            {"sample.temperature"},
        ),
        ("sample = { temperature = 0.9 }", "--sampler ddim --eta 0.5", set()),
    ],
)
def test_a_list_beneath_does_not_overrule_what_the_line_says(table, line, left, tmp_path: Path):
    """`sizes` counts for more than `num_ar_steps` beside it, not for more than one that comes later."""
    file = tmp_path / "sampling.toml"
    file.write_text(f"{table}\n")
    line = line.split()
    settings = cli.prepare(["sample", "a star", "--config", str(file), *line]).settings
    kept = {f"sample.{name}" for name in settings}
    stood = {f"sample.{name}" for name in tomllib.loads(table)["sample"]}
    assert stood - kept == left
    run = cli.prepare(["train", "--config", "digits", "--config", str(file), *_in_table(line)]).settings
    assert stood - {f"sample.{name}" for name in run.get("sample", {})} == left


def _in_table(line: list[str]) -> list[str]:
    return [f"--sample.{word[2:]}" if word.startswith("--") else word for word in line]


def test_a_later_recipe_is_not_overruled_by_an_earlier_one():
    passes, images = {"train": {"epochs": 3.0, "lr": 1e-4}}, {"train": {"images": 1000}}
    assert merge([passes, images]) == {"train": {"lr": 1e-4, "images": 1000}}
    assert merge([images, passes])["train"] == {"images": 1000, "epochs": 3.0, "lr": 1e-4}
    both = {"train": {"images": 1000, "epochs": 2.0}}
    assert merge([passes, both])["train"]["epochs"] == 2.0
    order = {"factorization": {"given_order": [1, 0]}}
    assert merge([order, {"factorization": {"order": "raster"}}]) == {"factorization": {"order": "raster"}}
    assert order == {"factorization": {"given_order": [1, 0]}}
