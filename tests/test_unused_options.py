"""Options that would change nothing are refused; what files and models say besides is not."""

import dataclasses
import typing
import warnings

import pytest
from PIL import Image

from causalfusion import cli
from causalfusion.commands.finetune import FinetuneRequest
from causalfusion.config import DiffusionConfig, RunConfig, SampleConfig, WriteConfig
from causalfusion.config.autoencoding import AutoencoderConfig, ReconstructionConfig
from causalfusion.config.recipes import load_layer, recipe_names
from causalfusion.generate.settings import warn_of_unused
from causalfusion.vocabulary.unused import DEFAULTS, OUT, USED, _typed


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            "sample --last-step 0.1",
            "--last-step 0.1 would change nothing, as it needs --sampler sde or sde_heun, not dpm++",
        ),
        (
            "sample --step-spacing leading",
            "--step-spacing leading would change nothing, as it needs a model with diffusion.path ddpm, not "
            "rectified_flow",
        ),
        ("edit x.png --region top --prompt x --variance fixed_small", "it needs --sampler ddpm, not dpm++"),
        ("complete x --top-k 3", "it needs --text-temperature other than 0.0"),
        ("caption x.png --top-p 0.5", "it needs --text-temperature other than 0.0"),
        ("evaluate --guidance-scale 1 --guidance-interval 0 0.5", "it needs --guidance-scale other than 1.0"),
        (
            "train --config digits --factorization.distribution uniform --factorization.decay 0.5",
            "--factorization.decay 0.5 would change nothing, as it needs --factorization.distribution decay, "
            "not uniform",
        ),
        (
            "train --config digits --config flow --diffusion.beta-schedule cosine",
            "--diffusion.path ddpm, not",
        ),
        ("train --config digits --text.caption-first 0.7", "as it needs --text.tokenizer; leave"),
        ("train --config digits --text.vocab-size 300", "as it needs --text.tokenizer train, not none"),
        ("train --config digits --sample.sampler ddim --sample.variance fixed_small", "ddpm, not ddim"),
        ("train --config in-context --text.image-only 0.7", "as it needs --data.source digits or shapes or"),
        ("train --config digits --data.examples 2", "as it needs --data.source in_context, not digits"),
        ("train nowhere --config digits", "--data.path nowhere would change nothing, as it needs"),
        ("train --config digits --train.lr-decay 0.2", "it needs --train.lr-schedule wsd, not cosine"),
        (
            "codec train --data.source digits --out ae --heads 4",
            "--heads 4 would change nothing, as it needs --kind fixed_variance, not kl",
        ),
        ("codec train --data.source digits --out ae --kind kl --deviation 0.5", "fixed_variance, not kl"),
        ("codec train --data.source digits --out ae --perceptual-weight 2", "as it needs --perceptual;"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(line, answer, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.run(line.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("causalfusion: --") and answer in said and said.endswith("or change the other")


@pytest.mark.parametrize(
    "line",
    [
        "train --config digits --sample.sampler dpm++",  # the recipe's variance is for ddpm
        "train --config transfusion",  # its base has a decay
        "train --config digits --sample.last-step 0.04",  # the default
        "train --config digits --sample.sampler ddpm --sample.variance fixed_large",
        "train --config digits --config flow --sample.sampler sde --sample.last-step 0.1",
        "train --config digits --factorization.order dilated --factorization.block-size 2",
        "train --config shapes --text.caption-first 0.6 --text.image-first 0.4",
        *(f"train photos --config {name}" for name in recipe_names() if "finetune" not in load_layer(name)),
    ],
)
def test_what_is_used_or_stands_in_a_file_is_taken(line, monkeypatch, tmp_path):
    seen: list[RunConfig] = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    monkeypatch.setattr(cli, "_with_choices", lambda prepared, *_: prepared)
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config))
    assert cli.run(line.split()) == 0 and len(seen) == 1


def test_a_run_that_has_begun_takes_the_command_that_it_began_with(monkeypatch, tmp_path):
    seen: list[RunConfig] = []
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config))
    line = ["train", "--config", "digits", "--out", str(tmp_path), "--sample.level-shift", "3"]
    assert cli.run(line) == 2
    (tmp_path / "checkpoints" / "000000000064").mkdir(parents=True)
    assert cli.run(line) == 0 and seen[0].sample.level_shift == 3


FINETUNE = "finetune shapes --data.source shapes"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ("--mixup 0.5", "--mixup 0.5 would change nothing, as it needs --task classify, not generate;"),
        ("--task classify --rank 4", "--rank 4 would change nothing, as it needs --adapter lora, not none;"),
        ("--adapter none --alpha 2", "as it needs --adapter lora, not none;"),
        ("--prior-images 5", "as it needs --prior-preservation other than 0.0;"),
        ("--train.trainable embeddings_norms_biases", "as it needs --adapter none, not lora;"),
        ("--train.evaluate-images 5", "as it needs --train.evaluate-every other than 0;"),
        ("--data.subset x", "as it needs --data.source datasets, not shapes;"),
        (
            "--adapter text-inversion --word <x> --text.caption-first 0.5",
            "as it needs --adapter none or lora, not text-inversion;",
        ),
        ("--sample.variance fixed_small", "as it needs --sample.sampler ddpm, not dpm++;"),
        ("--diffusion.beta-end 0.1", "finetune has no option --diffusion.beta-end"),
        ("--train.init other", "--train.init other is for train; finetune takes one MODEL"),
    ],
)
def test_fine_tuning_refuses_what_would_change_nothing(options, answer, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.run(f"{FINETUNE} {options}".split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert answer in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        "--rank 4 --alpha 2 --prior-preservation 0.5 --prior-images 5",
        "--adapter none --train.trainable embeddings_norms_biases",
        "--text.caption-first 0.5 --text.image-first 0.5",
        "--task classify --mixup 0.5 --train.evaluate-images 5",
        "--config digits-classify --label-smoothing 0.2",
        "--sample.level-shift 3",  # of the model's path
        "--rank 8 --mixup 0",  # the defaults
    ],
)
def test_fine_tuning_takes_what_is_used(options, monkeypatch, tmp_path):
    seen: list[RunConfig] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config) or tmp_path)
    monkeypatch.setattr("causalfusion.train.finetuning.report", lambda *_: None)
    assert cli.run(f"{FINETUNE} {options}".split()) == 0 and len(seen) == 1


def test_commands_that_train_have_these_folders():
    assert {"train": RunConfig().out, "finetune": FinetuneRequest().out} == OUT


def test_a_flag_that_repeats_the_default_is_taken():
    assert _typed("data.streaming", ["false"]) is False and _typed("data.streaming", ["true"]) is True


def test_the_same_is_said_once_of_settings_from_elsewhere():
    flow = DiffusionConfig(path="rectified_flow", prediction_type="velocity")
    with pytest.warns(UserWarning, match="last_step 0.1 changes nothing: it needs sampler sde") as said:
        warn_of_unused(SampleConfig(sampler="euler", last_step=0.1, level_shift=3.0), flow)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="level_shift 3.0 changes nothing: it needs a model with"):
        warn_of_unused(SampleConfig(level_shift=3.0), DiffusionConfig())
    with warnings.catch_warnings():  # all that they change is said by nobody to change nothing
        warnings.simplefilter("error")
        for path in ("rectified_flow", "gvp", "vp"):
            curved = DiffusionConfig(path=path, prediction_type="velocity")
            warn_of_unused(SampleConfig(sampler="sde_heun", last_step=0.1, level_shift=3.0), curved)


def test_the_table_names_settings_and_values_that_exist():
    choices: dict[str, tuple[str, ...]] = {}
    for config in (AutoencoderConfig, ReconstructionConfig):
        choices |= {name: typing.get_args(hint) for name, hint in typing.get_type_hints(config).items()}
    for table, config in (*typing.get_type_hints(RunConfig).items(), ("write", WriteConfig)):
        if dataclasses.is_dataclass(config):
            for name, hint in typing.get_type_hints(config).items():
                choices[f"{table}.{name}"] = typing.get_args(hint)
    for setting, uses in USED.items():
        assert setting in DEFAULTS
        for use in uses:
            assert use.other in DEFAULTS
            free = use.other in ("text.tokenizer", "data.image_size")
            assert free or set(use.values) <= set(choices[use.other]), (setting, use)
            assert use.values or type(use.unless) is type(DEFAULTS[use.other])
