"""One vocabulary: what people type is understood, answered, or refused with the option that they meant."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from cyclopts import App
from PIL import Image

import causalfusion
from causalfusion import cli
from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.machine.runtime import select_device
from causalfusion.vocabulary.data_path import settle_data
from causalfusion.vocabulary.options import command_of
from causalfusion.vocabulary.read import Line, read_line, whole_number
from causalfusion.vocabulary.words import OLD, OLD_POSITIONAL, POSITIONAL, words_of_options


def read(text: str | list[str]) -> Line:
    tokens = text.split() if isinstance(text, str) else text
    chain, apps, rest = cli.app.parse_commands(tokens)
    return read_line(command_of(" ".join(chain), apps[-1]), rest)


def chosen(command: str) -> tuple[str, App]:
    """The name of a command, or of its only subcommand, and its app."""
    below = {"convert": ["official"], "tokenizer": ["train"], "codec": ["train"]}.get(command, [])
    chain, apps, _ = cli.app.parse_commands([command, *below])
    return " ".join(chain), apps[-1]


def refused(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """The one line of a command that is refused."""
    assert cli.run(tokens) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("causalfusion: ") and not captured.out
    return line.removeprefix("causalfusion: ")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), 80 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that the train command hands on, instead of training."""
    seen: list[RunConfig] = []
    monkeypatch.setattr(cli, "_with_choices", lambda prepared, *_: prepared)  # nothing is chosen for the data
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config))
    return seen


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train --lr 0.1", {"--train.lr": ["0.1"]}),
        ("train --epochs 3", {"--train.epochs": ["3"]}),
        ("train --num_train_epochs 3", {"--train.epochs": ["3"]}),
        ("train --learning-rate 0.1", {"--train.lr": ["0.1"]}),
        ("train --batch-size 8", {"--train.batch-size": ["8"]}),
        ("train --batch_size=8", {"--train.batch-size": ["8"]}),
        ("train --hidden_size 64", {"--model.hidden-size": ["64"]}),
        ("train --image-size 64", {"--data.image-size": ["64"]}),
        ("train --resolution 64", {"--data.image-size": ["64"]}),
        ("train --num-workers 2", {"--data.num-workers": ["2"]}),
        ("train --workers 2", {"--data.num-workers": ["2"]}),
        ("train --images 100", {"--train.images": ["100"]}),
        ("train --data-path photos", {"--data.path": ["photos"]}),
        ("train --data_path photos", {"--data.path": ["photos"]}),
        ("train --dataset photos", {"--data.path": ["photos"]}),
        ("train --data photos", {"--data.path": ["photos"]}),
        ("train photos", {"--data.path": ["photos"]}),
        ("train a.tar b.tar", {"--data.path": ["a.tar", "b.tar"]}),
        (
            "train --data.path a.tar b.tar --flip",
            {"--data.path": ["a.tar", "b.tar"], "--data.flip": ["true"]},
        ),
        ("train --cfg 2", {"--sample.guidance-scale": ["2"]}),
        ("train -o runs/x", {"--out": ["runs/x"]}),
        ("train --data.flip true", {"--data.flip": ["true"]}),
        ("train --data.flip no", {"--data.flip": ["false"]}),
        ("train --data.no-flip", {"--data.flip": ["false"]}),
        ("train --train.images 1e6", {"--train.images": ["1000000"]}),
        ("train --train.images 1_000", {"--train.images": ["1000"]}),
        ("train --vae kl.ckpt", {"--codec.autoencoder": ["kl.ckpt"]}),
        ("train --autoencoder kl.ckpt", {"--codec.autoencoder": ["kl.ckpt"]}),
        ("encode photos --out latents", {"--data.path": ["photos"], "--out": ["latents"]}),
        ("encode --batch-size 2 --out latents", {"--batch-size": ["2"], "--out": ["latents"]}),
        ("tokenizer train photos -o t.json", {"--data.path": ["photos"], "--out": ["t.json"]}),
        (
            "codec train photos -o kl -b 8",
            {"--data.path": ["photos"], "--out": ["kl"], "--batch-size": ["8"]},
        ),
        ("codec evaluate photos --ae kl", {"--data.path": ["photos"], "--autoencoder": ["kl"]}),
        ("sample --steps 9", {"--diffusion-steps": ["9"]}),
        ("sample --cfg-scale 2", {"--guidance-scale": ["2"]}),
        ("sample --guidance 2", {"--guidance-scale": ["2"]}),
        ("sample -n 4", {"--images": ["4"]}),
        ("sample --num-images 4", {"--images": ["4"]}),
        ("sample --ckpt runs/x", {"--model": ["runs/x"]}),
        ("sample --checkpoint runs/x", {"--model": ["runs/x"]}),
        ("sample --class 3", {"--classes": ["3"]}),
        ("sample --class 3 --class 4", {"--classes": ["3", "4"]}),
        ("sample --output-dir x", {"--out": ["x"]}),
        ("sample --output png", {"--output": ["png"]}),
        ("sample --guidance-interval 0,500", {"--guidance-interval": ["0", "500"]}),
        ("edit a.png --classes 3", {"--class": ["3"]}),
        ("edit a.png --images 3", {"--variants": ["3"]}),
        ("edit a.png --no-paste", {"--paste": ["false"]}),
        ("evaluate --workers 3 --n 5", {"--num-workers": ["3"], "--images": ["5"]}),
        ("plan --cfg 1 2 --budget 1s", {"--guidance-scales": ["1", "2"], "--budget": ["1s"]}),
        ("convert official x.pt --autoencoder kl", {"--autoencoder": ["kl"]}),
        ("estimate --config cifar10 --batch-size 8", {"--config": ["cifar10"], "--train.batch-size": ["8"]}),
    ],
)
def test_words_of_habit_are_understood(typed, meant):
    line = read(typed)
    assert line.given == meant and not line.notes


@pytest.mark.parametrize(
    ("tokens", "prompts"),
    [
        (["sample", "a red circle", "a blue star"], ["a red circle", "a blue star"]),
        (["sample", "--prompt", "-5 degrees, snow"], ["-5 degrees, snow"]),
        (["sample", "--prompt=-5 degrees, snow", "--prompt", "--- b"], ["-5 degrees, snow", "--- b"]),
        (["sample", "-5 degrees, snow", "--images", "2"], ["-5 degrees, snow"]),
        (["sample", "--", "--images"], ["--images"]),
        (["sample", "--prompt", "snow", "-7"], ["snow", "-7"]),
        (["sample", "--caption", "~/snow"], ["~/snow"]),
    ],
)
def test_prompts_are_taken_as_they_are(tokens, prompts):
    prepared = cli.prepare(tokens)
    _, bound, _ = cli.app.parse_args(prepared.tokens, exit_on_error=False, print_error=False)
    assert bound.arguments["request"].prompts == prompts


@pytest.mark.parametrize(
    ("command", "content", "options"),
    [
        (["sample"], 'prompt = ["a", "b"]\nimages = 3', {"prompts": ["a", "b"], "images": 3}),
        (["edit", "x.png"], 'class = "dog"\nregion = "top"', {"class_name": "dog", "region": "top"}),
        (["complete", "a text"], "elements = 2", {"elements": 2}),
        (["plan", "--reference=digits"], 'budget = "2s"', {"budget": "2s", "budget_seconds": 2.0}),
    ],
)
def test_a_file_sets_options_by_their_names(command, content, options, tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text(content)
    prepared = cli.prepare([*command, "--config", str(tmp_path / "own.toml")])
    monkeypatch.setattr(cli.app, "config", prepared.config())
    _, bound, _ = cli.app.parse_args(prepared.tokens, exit_on_error=False, print_error=False)
    assert {name: getattr(bound.arguments["request"], name) for name in options} == options


@pytest.mark.parametrize(
    ("typed", "now"),
    [
        ("doctor runs/x", {"--model": ["runs/x"]}),
        ("plan runs/x --budget 1s", {"--model": ["runs/x"], "--budget": ["1s"]}),
        ("estimate imagenet256 XL --gpu h100", {"--config": ["imagenet256", "XL"], "--gpu": ["h100"]}),
        ("convert official x.pt --vae kl", {"--autoencoder": ["kl"]}),
    ],
)
def test_old_spellings_work_with_one_note(typed, now):
    line = read(typed)
    assert line.given == now
    (note,) = line.notes
    assert "goes with the next release" in note


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (
            "train --steps 100",
            "--train.images N or --train.epochs N; 100 steps see 100 times train.batch_size images",
        ),
        ("finetune shapes --max-train-steps 800", "800 steps see 800 times train.batch_size images"),
        ("train --max-steps=100 --batch-size 8", "100 steps of 8 images are --train.images 800"),
        ("train --model S", "a size is a recipe: --config S"),
        ("train --model runs/x", "--train.init runs/x"),
        ("train --resume", "the same command goes on"),
        ("finetune --ckpt runs/x --data photos", "to begin with other weights: finetune MODEL"),
        ("train cifar10", "cifar10 is a recipe; expected --config cifar10"),
        ("train photos --data.path photos", "'photos' and --data.path are both given"),
        ("train --train.epoks 3", "did you mean --train."),
        ("train --num-ar-steps 3", "may be one of --factorization.num-ar-steps, --sample.num-ar-steps"),
        ("train --data.flip maybe", "unexpected"),
        ("train --train.batch-size 12.6", "--train.batch-size is '12.6'; expected a whole number"),
        ("train --train.batch-size many", "--train.batch-size is 'many'; expected a whole number"),
        ("train --train.lr abc", "--train.lr is 'abc'; expected a number such as 0.5 or 3e-4"),
        ("sample --guidance-interval 0,1 0.9", "--guidance-interval is '0,1'; expected a number"),
        ("train --config", "--config requires a value"),
        ("train --train.lr --out x", "--train.lr requires a value"),
        ("sample --guidance-interval 5", "--guidance-interval requires 2 values"),
        ("sample --output /tmp/x", "a folder is given by --out"),
        ("sample --bf16", "use --precision bfloat16"),
        ("sample --gpu 0", "use --device cuda"),
        ("sample --negative-prompt x", "there is no negative one"),
        ("sample --guidance-scal 2", "sample has no option --guidance-scal; did you mean --guidance-scale?"),
        ("sample --qqqq 2", "see causalfusion sample --help-all"),
        ("encode --out x --train.lr 3", "encode has no option --train.lr"),
        ("doctor a b", "doctor takes one model"),
        ("demo here", "unexpected 'here'; demo takes options only"),
        ("edit a.png --classes 3 4", "unexpected '4'; edit takes one value"),
        ("study decay --train.images 3", "--config FILE.toml"),
    ],
)
def test_others_are_answered(typed, answer):
    if "maybe" in typed:  # a path, as flags need no value
        assert read(typed).given["--data.path"] == ["maybe"]
        return
    with pytest.raises(UserError) as error:
        read(typed)
    assert answer in str(error.value)


def test_every_word_means_an_option_of_some_command():
    names: set[str] = set()
    for command in cli.COMMANDS:
        known = command_of(*chosen(command))
        names |= set(known.names())
        for option in (POSITIONAL.get(known.name), OLD_POSITIONAL.get(known.name)):
            assert option is None or option in known.names()
    assert set(OLD.values()) <= names
    assert set(words_of_options()) <= names


@pytest.mark.parametrize(
    ("text", "number"), [("7", "7"), ("-3", "-3"), ("1e6", "1000000"), ("2.50e2", "250"), ("0x10", "16")]
)
def test_whole_numbers(text, number):
    assert whole_number("n", text) == number
    for wrong in ("12.6", "nan", "inf", "1e-1", "", "ten", "1e400", "1,000"):
        with pytest.raises(UserError, match="expected a whole number"):
            whole_number("n", wrong)


def test_whole_numbers_in_files(configs, tmp_path, capsys):
    file = tmp_path / "own.toml"
    file.write_text("[train]\nimages = 1e5\n")
    assert cli.run(["train", "--config", str(file)]) == 0
    assert configs[0].train.images == load_config(str(file)).train.images == 100_000
    file.write_text("[train]\nbatch_size = 12.6\n")
    assert "train.batch_size is '12.6'; expected a whole number" in refused(
        capsys, "train", "--config", str(file)
    )
    for line, message in (
        ("lr = 'fast'", "train.lr is 'fast'; expected a number"),
        ("images = true", "train.images is True; expected a whole number"),
        ("precision = 16", "train.precision is 16; expected auto or float32 or bfloat16"),
        ("learning = 1", "unknown setting train.learning"),
        ("batchsize = 1", "did you mean train.batch_size?"),
    ):
        file.write_text(f"[train]\n{line}\n")
        assert message in refused(capsys, "train", "--config", str(file))
    file.write_text("[train]\n[sample]\nsizes = 3\n")
    assert "sample.sizes is 3; expected a list" in refused(capsys, "train", "--config", str(file))


def test_the_home_folder_is_meant_by_a_tilde(configs, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "own.toml"
    file.write_text(
        'out = "~/runs"\n[data]\nsource = "folder"\npath = "~/photos"\n[text]\ntokenizer = "~/t.json"\n'
    )
    assert cli.run(["train", "--config=~/own.toml", "--train.init=~/model", "--data.cache", "~/latents"]) == 0
    (config,) = configs
    assert (config.out, config.data.path) == (f"{tmp_path}/runs", str(photos))
    assert config.text.tokenizer == f"{tmp_path}/t.json" and config.train.init == f"{tmp_path}/model"
    assert config.data.cache == f"{tmp_path}/latents"
    assert load_config("~/own.toml").data.path == str(photos)
    line = read("evaluate --features inception:~/w.pt --samples ~/s --out=~/e")
    assert line.given == {
        "--features": [f"inception:{tmp_path}/w.pt"],
        "--samples": [f"{tmp_path}/s"],
        "--out": [f"{tmp_path}/e"],
    }
    assert read("caption ~/a.png").positional == [f"{tmp_path}/a.png"]
    assert read("train a~b").given["--data.path"] == ["a~b"]


def test_the_source_follows_from_the_path(configs, photos, tmp_path, capsys):
    for tokens in (
        ["train", str(photos)],
        ["train", "--data.path", str(photos)],
        ["train", "--config=cifar10", str(photos)],
    ):
        assert cli.run(tokens) == 0
    assert [(c.data.source, c.data.path) for c in configs] == [("folder", str(photos))] * 3
    assert configs[2].train == load_config("cifar10").train
    assert "does not exist" in refused(capsys, "train", str(tmp_path / "nothing"))
    assert "data.path is ''; expected a folder" in refused(capsys, "train", "--data.path=")
    file = tmp_path / "own.toml"
    file.write_text(f'[data]\npath = "{photos}"\n')
    assert cli.run(["train", "--config", str(file)]) == 0
    assert configs[3].data.source == "folder"


def test_unquoted_shards_are_one_path(configs, tmp_path):
    from causalfusion.data.webdataset import find_shards

    shards = [str(tmp_path / f"{name}.tar") for name in "ab"]
    for shard in shards:
        Path(shard).write_bytes(b"")
    assert cli.run(["train", *shards]) == 0
    assert cli.run(["train", "--data.path", *shards, "--lr", "1"]) == 0
    for config in configs:
        assert config.data.source == "webdataset"
        assert [str(path) for path in find_shards(config.data.path)] == shards


def test_each_command_takes_its_tables_of_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "model_settings", lambda *_: [])

    def settings(*tokens: str) -> dict:
        return cli.prepare([*tokens, "--config", "cifar10"]).settings

    sampling = load_config("cifar10").sample
    for command in ("sample", "edit", "complete", "evaluate"):
        taken = settings(command)
        assert taken == {"num_ar_steps": 1, "diffusion_steps": [50], "guidance_scale": 2.0}
        assert taken["diffusion_steps"] == sampling.diffusion_steps
    assert set(settings("encode", "--out", "x")) == {"data", "codec"}
    assert set(settings("tokenizer", "train", "--out", "x")) == {"data"}
    assert set(settings("plan")) == {"sample"}
    assert settings("caption") == {}
    file = tmp_path / "own.toml"
    file.write_text('base = ["cifar10"]\nbatch_size = 3\nnum_ar_steps = 4\n[sample]\nguidance_scale = 5.0\n')
    mine = cli.prepare(["sample", "--config", str(file)]).settings
    assert (mine["batch_size"], mine["num_ar_steps"], mine["guidance_scale"]) == (3, 4, 5.0)
    file.write_text('[data]\nsource = "shapes"\n[distill]\nsteps = 2\nguidance_scale = 3.0\n')
    mine = cli.prepare(["distill", "shapes", "--config", str(file)]).settings
    assert (mine["steps"], mine["guidance_scale"], mine["data"]["source"]) == (2, 3.0, "shapes")
    file.write_text("[sampel]\neta = 0\n")
    assert "unknown setting sampel; did you mean sample" in refused(capsys, "sample", "--config", str(file))


def test_a_recipe_of_finetune_is_no_training(capsys):
    said = refused(capsys, "train", "--config", "digits-classify")
    assert "causalfusion finetune MODEL --config digits-classify" in said


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cuda:77", "hpu", "nonsense", "cuda:x", ""])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError, match=f"device is '{name}'"):
        select_device(name)


def test_devices_are_refused_on_the_command_line(capsys, tmp_path, photos):
    for command in (
        ["sample", "a red circle", "--out", str(tmp_path / "s")],
        ["train", "--config", "digits", "--out", str(tmp_path / "t")],
        ["encode", str(photos), "--out", str(tmp_path / "e")],
        ["caption", str(photos)],
        ["doctor"],
    ):
        assert "device is 'meta'" in refused(capsys, *command, "--device", "meta")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "causalfusion", *command, "--help-all"], capture_output=True, text=True
    )
    assert done.returncode == 0
    return done.stdout


def test_each_command_has_one_line_in_the_list():
    listed = help_of()
    for command in cli.COMMANDS:
        (line,) = (one for one in listed.splitlines() if one.startswith(f"│ {command} "))
        assert len(line.split()) > 4


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_option_has_its_meaning(command):
    arguments = chosen(command)[1].assemble_argument_collection(parse_docstring=True)
    listed = [a for a in arguments if a.show and not a.children]
    assert not [a.names[0] for a in listed if not a.parameter.help]


def test_help_lists_what_the_command_uses_and_nothing_empty():
    encode, train = help_of("encode"), help_of("train")
    assert "--codec.patch-size" in encode and "--model." not in encode and "--train." not in encode
    assert "--data.path" in help_of("tokenizer", "train") and "--codec." not in help_of("tokenizer", "train")
    assert "--model.depth" in train
    for text in (encode, train, help_of("sample")):
        assert "--empty" not in text and "[default: ]" not in text and "[]" not in text


@pytest.mark.parametrize(
    "tokens", [["--help"], ["--version"], ["train", "--help"], ["sample", "--stepz", "3"], ["trian"]]
)
def test_help_and_mistakes_need_no_torch(tokens):
    code = f"import sys; from causalfusion import cli; cli.run({tokens!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_package_is_imported_lazily():
    code = (
        "import sys, causalfusion; assert 'torch' not in sys.modules; "
        "from causalfusion import Pipeline, SampleConfig, load_config; load_config('tiny'); "
        "sys.exit(Pipeline.__name__ != 'Pipeline')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert set(causalfusion.__all__) <= set(dir(causalfusion))
    with pytest.raises(AttributeError, match="Nothing"):
        causalfusion.Nothing  # noqa: B018


def test_python_m_causalfusion():
    done = subprocess.run([sys.executable, "-m", "causalfusion", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, causalfusion.__version__)


def test_a_reader_that_goes_away_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = (
        "import sys; from causalfusion import cli; cli.app.command(lambda: print('much'), name='say'); "
        "sys.argv = ['causalfusion', 'say']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, "")


def test_warnings_of_the_package_are_notes_said_once(monkeypatch, capsys):
    def warn(*_, **__):
        for text in ("seven files\nwere left out", "seven files\nwere left out", "\x1b[31mred"):
            warnings.warn_explicit(text, UserWarning, cli.__file__, 1)

    monkeypatch.setattr("causalfusion.train.run.train", warn)
    before = warnings.showwarning
    assert cli.run(["train", "--config", "digits"]) == 0
    assert capsys.readouterr().err.splitlines() == ["note: seven files were left out", "note: \\x1b[31mred"]
    assert warnings.showwarning is before


def test_what_goes_wrong_is_one_line(monkeypatch, capsys):
    for error, code, message in (
        (MemoryError(), 2, "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            2,
            "9 bytes",
        ),
        (OSError(28, "No space left on device", "here"), 2, "the disk is full while writing here"),
        (PermissionError(13, "Permission denied", "there\x1b[2J"), 2, "there\\x1b[2J: Permission denied"),
        (KeyboardInterrupt(), 130, "stopped"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("causalfusion.train.run.train", fail)
        assert cli.run(["train", "--config", "digits"]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and "\x1b" not in line


def test_control_characters_never_reach_the_terminal(capsys):
    assert "\\x1b" in refused(capsys, "train", "--config", "a\x1b[31mb")
    assert "\\x1b" in refused(capsys, "sample", "--model", "a\x1b]0;title\x07b")


def test_a_study_takes_recipes(tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(
        "causalfusion.study.run.run_studies", lambda _, study_data, __: received.append(study_data)
    )
    own = tmp_path / "own.toml"
    own.write_text("[train]\nimages = 640\n[codec]\npatch_size = 4\n")
    assert cli.run(["study", "decay", "--config", str(own), "--config=tiny", "--out", str(tmp_path)]) == 0
    (study_data,) = received
    assert study_data.settings["train"]["images"] == 640
    assert study_data.settings["codec"]["patch_size"] == 4
    assert study_data.settings["model"]["depth"] == load_config("tiny").model.depth


def test_an_estimate_takes_recipes_and_settings_in_any_spelling(capsys):
    common = ["--gpu", "h100", "--json"]
    assert cli.run(["estimate", "--config", "imagenet256", "--config=L", *common, "--batch_size", "1e3"]) == 0
    now = capsys.readouterr()
    assert cli.run(["estimate", "imagenet256", "L", "--train.batch-size=1000", *common]) == 0
    before = capsys.readouterr()
    assert now.out == before.out and not now.err
    assert "estimate --config imagenet256 --config L" in before.err


def test_a_cache_says_itself_which_images_it_was_made_of(photos, tmp_path, capsys):
    cache = tmp_path / "latents"
    assert (
        cli.run(["encode", str(photos), "--data.image-size", "4", "--out", str(cache), "--device", "cpu"])
        == 0
    )
    made = {"--data.source": ["folder"], "--data.split": ["train"], "--data.image-size": ["4"]}
    for typed, file, settled in (
        (["train", str(cache)], {}, {"--data.cache": [str(cache)]}),
        (["train"], {"path": str(cache)}, {"--data.cache": [str(cache)], "--data.path": [""]}),
        (["train"], {"cache": str(cache)}, {}),
    ):
        given = read(typed)
        settle_data(given, {"data": file})
        assert given.given == made | settled
    capsys.readouterr()
    assert "holds latents" in refused(capsys, "encode", str(cache), "--out", str(tmp_path / "again"))
