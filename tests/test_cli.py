"""The command line: recipes reach the run unchanged, mistakes are one line and exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from causalfusion import cli
from causalfusion.commands.finetune import Task
from causalfusion.config import ClassifyConfig, RunConfig
from causalfusion.config.recipes import load_config, load_layer, recipe_names
from causalfusion.config.serialize import from_dict, to_dict
from causalfusion.errors import UserError
from causalfusion.train.run import train
from causalfusion.vocabulary.help import OF_SAMPLING, OF_TABLES

PATHS = {"codec": {"autoencoder": "kl16.ckpt"}, "data": {"path": "images"}}
PATH_OPTIONS = ["--codec.autoencoder=kl16.ckpt", "--data.path=images"]


@pytest.fixture
def configs(monkeypatch):
    """The configurations that the train command hands on, instead of training."""
    seen: list[RunConfig] = []
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config))
    return seen


@pytest.fixture
def wide(monkeypatch):
    """Each option of a help text on one line. The app keeps its first console, which was made for whatever
    width the first test saw: setting COLUMNS would be too late."""
    monkeypatch.setattr(cli.app, "console", Console(width=700))


TUNING = [name for name in recipe_names() if "finetune" in load_layer(name)]
"""Recipes of `finetune`."""


@pytest.mark.parametrize("name", TUNING)
def test_a_recipe_of_finetune_is_refused_by_train_and_taken_by_finetune(name, configs, monkeypatch, capsys):
    assert cli.run(["train", "--config", name, *PATH_OPTIONS]) == 2 and not configs
    assert f"causalfusion finetune MODEL --config {name}" in capsys.readouterr().err
    seen: list = []
    tasks = {"classify": Task(lambda *_: {}, lambda request, _: seen.append(request))}
    monkeypatch.setattr("causalfusion.commands.finetune.TASKS", tasks | {"caption": tasks["classify"]})
    layer = load_layer(name)
    options = PATH_OPTIONS[1:] if layer["data"]["source"] in ("folder", "jsonl") else []
    assert cli.run(["finetune", "shapes", "--config", name, *options]) == 0
    (request,) = seen
    assert request.task == layer["finetune"]["task"] and request.train.lr == layer["train"]["lr"]
    assert request.classify == ClassifyConfig(**layer.get("classify", {}))


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in TUNING])
def test_every_recipe_reaches_the_run_unchanged(name, configs):
    """Through the command line as through Python, every table of it."""
    names, options, paths = ([name], PATH_OPTIONS, PATHS)
    if "data" not in load_layer(name):  # to lay over another
        names, options, paths = (["digits", name], [], {})
    elif load_layer(name)["data"]["source"] in ("digits", "shapes", "in_context"):  # which have no path
        options, paths = [], {}
    assert cli.run(["train", *[f"--config={recipe}" for recipe in names], *options]) == 0
    assert configs == [load_config(*names, **paths)]


def test_data_alone_are_enough_and_what_is_given_overrides_what_is_chosen(configs, tmp_path, capsys):
    for n in range(40):
        Image.new("RGB", (16, 16), (n, 255 - n, 0)).save(tmp_path / f"{n}.png")
    options = ["--config", "tiny", "--data.flip", "false", "--train.minutes", "3", "--lr", "5e-4"]
    assert cli.run(["train", str(tmp_path), *options]) == 0
    (config,) = configs
    assert (config.data.source, config.data.path) == ("folder", str(tmp_path))
    assert (config.data.image_size, config.codec.patch_size, config.model.hidden_size) == (16, 2, 128)
    assert (config.data.flip, config.train.minutes, config.train.lr) == (False, 3.0, 5e-4)
    assert config.out == f"runs/{tmp_path.name}"
    said = capsys.readouterr().out
    assert "40 images of 16x16" in said and "--codec.patch-size 2" in said
    assert not any(name in said for name in ("--data.flip", "--train.minutes", "--train.lr ", "hidden-size"))


def test_layers_lie_over_one_another(configs, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('base = ["imagenet256"]\n[train]\nbatch_size = 64\n[sample]\ndiffusion_steps = [7]\n')
    options = ["--config", str(mine), "--config=tiny", "--train.lr", "0.5", "--sample.sizes", "3", "4"]
    assert cli.run(["train", *options, *PATH_OPTIONS]) == 0
    (config,) = configs
    assert (config.train.batch_size, config.train.lr, config.model.hidden_size) == (64, 0.5, 128)
    assert config.model.num_class_tokens == 64 and config.train.precision == "bfloat16"
    assert (config.sample.diffusion_steps, config.sample.sizes) == ([7], [3, 4])


def test_json_round_trip():
    for name in recipe_names():
        config = load_config(name, **PATHS)
        assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"lr": "fast"}}, "train.lr is 'fast'; expected a value of type float"),
        ({"model": {"size": 3}}, "unknown setting model.size"),
        ({"data": 3}, "data is 3; expected a table"),
        ({"sample": {"sizes": ["a"]}}, "sample.sizes is 'a'"),
        ({"model": {"position_embedding": "none"}}, "one of sincos, learnable, rope"),
        ({"sample": {"guidance_interval": [5]}}, "expected 2 values"),
        ({"sample": {"eta": 0.5}}, "sample.eta is 0.5; expected 0, unless the sampler is ddim"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(RunConfig, values)


def refused(capsys, *tokens: str) -> str:
    """The one line on stderr of a command that is refused."""
    assert cli.run(tokens) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("causalfusion: ") and not captured.out
    return line


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["trian"], 'Unknown command "trian"'),
        (["train", "--train.batchsize", "3"], "did you mean --train.batch-size"),
        (["train", "--train.lr", "-1"], "train.lr is -1.0; expected a positive number"),
        (["train", "--model.num-heads", "5"], "model.num_heads is 5; expected a divisor"),
        (["train"], "train needs data: give the path of images"),
        (["estimate", "--config", "digits", "--train.batch-size", "1000000000000"], "train.batch_size is"),
        (["train", "--config", "S"], "train needs data"),
        (["train", "--config", "nope"], "neither a file nor a recipe; the recipes are B, H"),
        (["train", "--config", "imagenet257"], "a recipe (did you mean imagenet256?); the recipes are B, H"),
        (["train", "--config"], "--config"),
        (["train", "--data.source", "folder"], "data.path is ''; expected a path, for source folder"),
        (["train", "--data.source", "folder", "--data.path", "/nope"], "/nope"),
        (["train", "--data.source", "npz", "--data.path", "/nope.npz"], "/nope.npz"),
        (
            ["train", "--config", "digits", "--codec.patch-size", "3"],
            "the image height is 8; expected a multiple of 3",
        ),
        (["train", "--data.cache", "/nope"], "/nope"),
        (["sample", "--model", "/nope"], "/nope holds no model (it does not exist): expected"),
        (["sample", "--model", "shape"], "shape holds no model (did you mean shapes?): expected"),
        (["sample", "--out="], "--out is empty; expected a path"),
        (["train", "--config", "digits", "--out", ""], "--out is empty; expected a path"),
        (["sample", "--model="], "--model is empty; expected a path"),
        (["caption"], "FILES requires an argument"),
        (["complete"], "expected elements to go on from, or --documents: neither is given"),
        (["edit"], "IMAGE requires an argument"),
        (["doctor", "--model", "/nope"], "/nope holds no model"),
        (["doctor", "--reference", "/nope"], "/nope"),
        (["doctor", "--reference", "/nope", "--model", "shapes"], "leave all other options out"),
        (["doctor", "--autoencoder", "/nope"], "give --model, too, or leave it out"),
        (["publish", "shapes", "--out", "x", "--private"], "give --to, or leave it out"),
        (["classify", "/nope.png", "--seed", "1"], "classify has no option --seed"),
        (["encode", "--out", "x"], "encode needs data: give the path of images"),
        (["tokenizer", "train", "--out", "t.json"], "tokenizer train needs data"),
        (["evaluate", "--reference-images", "4"], "--reference-images is of a reference; give --reference"),
        (
            ["finetune", "shapes", "--data.source=shapes", "--adapter=lora", "--train.optimizer=muon"],
            "train.optimizer is muon, which trains whole matrices, and --adapter lora trains none",
        ),
        (["convert", "official", "/nope.pt", "--out", "/tmp/x"], "/nope.pt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, tokens, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *tokens)
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def test_bases_that_cannot_be(capsys, tmp_path):
    (tmp_path / "own.toml").write_text(f'base = ["{tmp_path}/own.toml"]')
    assert "is its own base" in refused(capsys, "train", "--config", str(tmp_path / "own.toml"))
    (tmp_path / "text.toml").write_text('base = "XL"')
    assert 'expected a list, such as base = ["XL"]' in refused(
        capsys, "train", "--config", str(tmp_path / "text.toml")
    )
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refused(capsys, "train", "--config", str(tmp_path / "binary.toml"))


def test_an_output_that_is_a_file(capsys, model, tmp_path):
    (tmp_path / "file").write_text("")
    base = ["sample", "--model", str(model), "--images", "1", "--diffusion-steps", "1"]
    assert "file" in refused(capsys, *base, "--out", str(tmp_path / "file"))
    assert "file" in refused(capsys, *base, "--out", str(tmp_path / "file" / "below"))


def test_a_config_that_is_no_toml(capsys, tmp_path):
    (tmp_path / "broken.toml").write_text("[train\nlr = 1")
    assert "is not valid TOML" in refused(capsys, "train", "--config", str(tmp_path / "broken.toml"))
    (tmp_path / "odd.toml").write_text("[train]\nlearning = 1\n")
    assert "learning" in refused(capsys, "train", "--config", str(tmp_path / "odd.toml"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of 8x8 digits that has seen a few images."""
    config = load_config(
        out=str(tmp_path_factory.mktemp("run")),
        model={"hidden_size": 32, "depth": 2, "num_heads": 2, "num_class_tokens": 2},
        codec={"patch_size": 2},
        train={"images": 64, "batch_size": 16, "evaluate_every": 0},
    )
    return train(config, device="cpu", show_progress=False)


def test_sample_writes_images_grid_arrays_and_settings(model, tmp_path, capsys):
    out = tmp_path / "out"
    options = [
        "--num-ar-steps",
        "4",
        "--diffusion-steps",
        "3",
        "--classes",
        "3",
        "7",
        "--guidance-scale",
        "2",
    ]
    outputs = ["--output", "png", "grid", "npz"]
    assert (
        cli.run(["sample", "--model", str(model), "--out", str(out), "--images", "6", *options, *outputs])
        == 0
    )
    assert "6 images" in capsys.readouterr().out
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (6, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [3, 7, 3, 7, 3, 7]
        for index, image in enumerate(arrays["arr_0"]):
            assert (np.array(Image.open(out / f"{index:06d}.png")) == image[..., 0]).all()
    assert Image.open(out / "grid.png").width > 100
    settings = json.loads((out / "settings.json").read_text())
    assert settings["settings"]["guidance_scale"] == 2 and settings["labels"] == [3, 7, 3, 7, 3, 7]
    again = tmp_path / "again"
    tail = ["--first", "4", "--images", "2", "--batch-size", "1", *options]
    assert cli.run(["sample", "--model", str(model), "--out", str(again), *tail]) == 0
    for name in ("000004.png", "000005.png"):
        difference = np.array(Image.open(out / name)).astype(int) - np.array(Image.open(again / name))
        assert abs(difference).max() <= 1


def test_edit_keeps_what_is_not_masked(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    options = ["--class", "5", "--diffusion-steps", "3", "--num-ar-steps", "2", "--variants", "2"]
    for place, kept in (("top", np.s_[4:, :]), ("5,5,2,3", np.s_[:5, :])):
        out = tmp_path / place
        command = [
            "edit",
            str(tmp_path / "in.png"),
            "--model",
            str(model),
            "--region",
            place,
            "--out",
            str(out),
        ]
        assert cli.run([*command, *options]) == 0
        edits = [np.array(Image.open(out / f"edited-0{v}.png")) for v in range(2)]
        assert all((edit[kept] == pixels[kept]).all() for edit in edits)
        assert (edits[0] != edits[1]).any() and (edits[0] != pixels).any()


def test_edit_by_mask_image(model, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:4]).save(tmp_path / "small.png")
    Image.fromarray(mask * 0).save(tmp_path / "empty.png")
    base = ["edit", str(tmp_path / "in.png"), "--model", str(model), "--out", str(tmp_path / "out")]
    base += ["--diffusion-steps", "2"]
    assert cli.run([*base, "--class", "1", "--mask", str(tmp_path / "mask.png")]) == 0
    edited = np.array(Image.open(tmp_path / "out" / "edited-00.png"))
    assert (edited[mask == 0] == 0).all()
    capsys.readouterr()
    for options, message in (
        (["--mask", str(tmp_path / "small.png")], "has 8x4 pixels; expected 8x8"),
        (["--mask", str(tmp_path / "empty.png")], "the mask is empty"),
        (["--mask", str(tmp_path / "gone.png")], "gone.png does not exist"),
        (["--region", "middle"], "region 'middle' is unknown"),
        (["--region", "0,0,9,2"], "does not lie within the 8x8 image"),
        ([], "one of --mask and --region"),
        (["--region", "top", "--class", "11"], "class 11 is out of range"),
        (["--region", "top", "--num-ar-steps", "9"], "at most 8"),
    ):
        given = options if "--class" in options else [*options, "--class", "1"]
        assert message in refused(capsys, *base, *given)


def test_doctor_on_a_model(model, capsys):
    assert cli.run(["doctor", "--model", str(model)]) == 0
    printed = capsys.readouterr().out
    for word in ("cached against masked", "null class", "codec round trip", "attention dense"):
        assert word in printed
    assert "FAILED" not in printed


def test_help_needs_no_torch():
    """`--help` of every command answers without loading PyTorch."""
    code = (
        "import sys; from causalfusion import cli; "
        "codes = [cli.run([command, '--help']) for command in cli.COMMANDS]; "
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--train.lr" in done.stdout and "--guidance-scale" in done.stdout


GROUPS = {
    "convert": ["official", "bundle", "dit", "mar", "diffusers"],
    "tokenizer": ["train"],
    "codec": ["train", "evaluate"],
}
WITH_OPTIONS = [f"{name} {below}".strip() for name in cli.COMMANDS for below in GROUPS.get(name, [""])]


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_every_option_has_a_help_text(command, capsys, wide):
    assert cli.run([*command.split(), "--help-all"]) == 0
    options = re.findall(r"^│ \*? *(--\S+)(.*?)  +(.*?) *│$", capsys.readouterr().out, re.MULTILINE)
    assert options
    assert not [name for name, _, text in options if not text or text.startswith("[")]


def test_the_short_help_has_what_most_look_for_and_counts_the_rest(capsys, wide):
    def listed(*tokens: str) -> tuple[set[str], str]:
        assert cli.run([*tokens]) == 0
        text = capsys.readouterr().out
        return set(re.findall(r"^│ \*? *(--\S+)", text, re.MULTILINE)), text

    whole = {}
    for command, most in (("train", 40), ("sample", 30), ("codec train", 45), ("caption", 20)):
        (short, text), (everything, all_text) = (
            listed(*command.split(), flag) for flag in ("--help", "--help-all")
        )
        whole[command] = everything
        assert short <= everything and len(short) <= most and "finer settings" not in all_text
        left = len(everything - short)
        assert (
            f"{left} finer settings: causalfusion {command} --help-all" in text
            if left
            else short == everything
        )
    assert whole["train"] >= OF_TABLES and whole["sample"] >= OF_SAMPLING
    assert listed("--help-all")[0] == listed("--help")[0]


@pytest.mark.parametrize(
    ("command", "says"),
    [*((name, "sample.toml says") for name in cli.GENERATING), ("train", "chosen for the data")],
)
def test_help_says_whose_settings_precede_its_defaults(command, says, capsys, wide):
    """`--diffusion-steps [default: 100]` is not how many the packaged model takes."""
    assert cli.run([command, "--help"]) == 0
    assert says in capsys.readouterr().out


def test_a_value_without_end_is_cut_in_a_message(capsys):
    assert cli.run(["sample", "--classes", "x" * 100_000, "--out", "nowhere"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and 100 < len(said[0]) < 1500 and said[0].startswith("causalfusion: ")
