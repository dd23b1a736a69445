"""What is published of a run: a model that is complete in itself, and a page with what is known of it."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub
from PIL import Image

from causalfusion import Pipeline, RunConfig, SampleConfig, cli
from causalfusion.codec.autoencoder import fingerprint, save_autoencoder
from causalfusion.config import CodecConfig, FinetuneConfig, ModelConfig
from causalfusion.config.recipes import load_config
from causalfusion.config.serialize import flat, to_dict
from causalfusion.evaluate.cards.card import Card
from causalfusion.evaluate.measures.figure import Figure
from causalfusion.files import sha256_of
from causalfusion.interop.publish import Publication, _write_recipe, write_publication
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, latest_model, load_spec, replace_model
from causalfusion.saved.model_card import CardFacts, model_card
from causalfusion.train.run import train

SHORT = ["--train.images", "16", "--train.batch-size", "8", "--train.precision", "float32",
         "--train.evaluate-images", "8"]  # fmt: skip


def card_of(weights: str) -> Card:
    figure = Figure(
        quantity="frechet", value=3.25, count=2000, features="pixels:8", features_fingerprint="f",
        reference="r", low=2.0, high=4.0,
    )  # fmt: skip
    samples = {
        "name": "/home/me/run", "model": "/home/me/run/checkpoints/1", "count": 2000, "hash": "h",
        "checkpoint_sha256": weights,
        "sample": {"sampler": "ddim", "num_ar_steps": 4, "diffusion_steps": [20], "guidance_scale": 2.0},
    }  # fmt: skip
    reference = {
        "name": "/home/me/digits", "features": "pixels:8", "fingerprint": "r", "statistics_hash": "s",
        "mean_norm": 1.0, "covariance_trace": 2.0, "file": "/home/me/.cache/r.npz",
    }  # fmt: skip
    features = [{"name": "pixels:8", "fingerprint": "f"}]
    preset = {
        "name": "paper-256",
        "changed": {"features": ["model:/home/me/run:2", "pixels:8"], "num_ar_steps": 4},
    }
    return Card(
        figures={figure.name: figure}, samples=samples, references=[reference], features=features,
        preset=preset, run={"processes": 1, "argv": ["evaluate", "--model", "/home/me/run"]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, with a grid of samples, a card of its last checkpoint and one of an earlier one."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    config = load_config(
        train={"images": 32, "batch_size": 16, "lr": 3e-4, "evaluate_images": 16},
        model={"hidden_size": 32, "depth": 2, "num_heads": 2, "num_class_tokens": 2},
        codec={"patch_size": 2}, data={"flip": False}, out=str(out),
    )  # fmt: skip
    folder = train(config, device="cpu", show_progress=False)
    (out / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(out / "samples" / "000000000032.png")
    card_of(sha256_of(folder / "model.safetensors")).save(out / "evaluation" / "card.json")
    card_of("of an earlier checkpoint").save(out / "before" / "card.json")
    Image.new("RGB", (8, 8)).save(out / "evaluation" / "grid.png")
    return out


def test_the_page_tells_what_is_known(hub: LocalHub, run: Path, capsys):
    assert cli.run(["publish", str(run), "--to", "me/digits", "--license", "mit"]) == 0
    told = capsys.readouterr().out
    assert "1 result cards" in told and "of other weights" in told
    files = hub.files("me/digits")
    assert files.keys() == {
        "README.md", "config.json", "model.safetensors", "sample.toml", "training.toml", "figures/00.json",
        "pictures/00.png", "pictures/01.png",
    }  # fmt: skip
    page = files["README.md"].decode()
    assert "| frechet_pixels8_2k | 3.25 | 2 .. 4 | 2,000 | against digits, S = 4, ddim 20 steps" in page
    assert "![Samples during training, after 32 images](pictures/00.png)" in page
    assert "| source | digits |" in page and "| images | 1,797 |" in page
    assert not any(str(run.parent).encode() in content for content in files.values())
    assert b"/home/me" not in b"".join(files.values())
    told = json.loads(files["figures/00.json"])
    assert told["samples"]["model"] == "1" and told["run"] == {"processes": 1}
    assert told["references"][0]["file"] == "r.npz"
    assert told["preset"]["changed"] == {"features": ["model:run:2", "pixels:8"], "num_ar_steps": 4}


def test_the_settings_of_the_training_begin_the_same_training(run: Path, tmp_path: Path):
    write_publication(run, tmp_path / "model", "me/digits", Publication())
    settings = tmp_path / "model" / "training.toml"
    given = flat(tomllib.loads(settings.read_text()))
    assert given["train.lr"] == 3e-4 and "model.num_classes" not in given and "out" not in given
    asked = load_config(str(settings), out="x")
    assert isinstance(asked, RunConfig)
    begun = json.loads((latest_model(run) / "state" / "run.json").read_text())
    from_data = ("model.", "codec.")
    for name, value in flat(to_dict(asked)).items():
        if not name.startswith(from_data) and name != "out":
            assert flat(begun)[name] == value, name


def test_a_students_settings_do_not_tell_where_its_teacher_lies(run: Path, tmp_path: Path):
    student = tmp_path / "student"
    line = ["distill", str(run), "--steps", "1", "--train.images", "32", "--out", str(student)]
    assert cli.run(line) == 0
    write_publication(student, tmp_path / "model", "me/digits", Publication())
    settings = (tmp_path / "model" / "training.toml").read_text()
    assert str(run) not in settings and "distill.teacher_hash" not in settings
    assert flat(tomllib.loads(settings))["distill.steps"] == 1
    assert "Left out, as they are paths" in settings and "distill.teacher" in settings


def test_a_card_of_other_weights_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="is a card of other weights"):
        asked = Publication(cards=[run / "before"])
        write_publication(run, tmp_path / "model", "me/x", asked)
    with pytest.raises(ValueError, match="is no picture"):
        write_publication(run, tmp_path / "model", "me/x", Publication(pictures=[run / "log.jsonl"]))
    assert not (tmp_path / "model").exists(), "an earlier one would have been replaced by half of this"


def test_a_card_of_the_model_with_adapters_is_of_another(run: Path, tmp_path: Path):
    plain = card_of(sha256_of(latest_model(run) / "model.safetensors"))
    samples = {**plain.samples, "adapters": ["heart 0123 x 1"], "checkpoint": "/home/me/run/1"}
    shutil.copytree(run, tmp_path / "run")
    replace(plain, samples=samples).save(tmp_path / "run" / "hearts" / "card.json")
    notes = write_publication(tmp_path / "run", tmp_path / "model", "me/x", Publication())
    assert any(note.startswith("2 result cards in") for note in notes) and "1 figures, 2 pic" in notes[-2]
    with pytest.raises(ValueError, match="is a card of the model with adapters"):
        asked = Publication(cards=[tmp_path / "run" / "hearts"])
        write_publication(run, tmp_path / "again", "me/x", asked)


def test_a_figure_tells_that_it_is_of_the_best_of_several_draws(run: Path, tmp_path: Path):
    plain = card_of(sha256_of(latest_model(run) / "model.safetensors"))
    samples = {**plain.samples, "candidates": 8, "quantize": "int8", "checkpoint": "/home/me/run/1"}
    replace(plain, samples=samples).save(tmp_path / "card.json")
    asked = Publication(cards=[tmp_path / "card.json"])
    write_publication(run, tmp_path / "model", "me/x", asked)
    page = (tmp_path / "model" / "README.md").read_text()
    assert "guidance 2.0, best of 8, int8" in page
    assert not any("/home/me" in file.read_text() for file in (tmp_path / "model/figures").iterdir())


def test_a_card_in_the_run_that_is_given_too_is_told_once(run: Path, tmp_path: Path, monkeypatch):
    """As its folder, and relative to where one is."""
    write_publication(run, tmp_path / "plain", "me/x", Publication())
    monkeypatch.chdir(run)
    for number, card in enumerate((Path("evaluation"), Path("evaluation/card.json"))):
        out = tmp_path / str(number)
        write_publication(run, out, "me/x", Publication(cards=[card]))
        assert len(list((out / "figures").iterdir())) == len(list((tmp_path / "plain/figures").iterdir()))


def test_notes_of_the_makers_stay_through_several_publications(tmp_path: Path):
    write_publication(Path("shapes"), tmp_path / "one", "me/one", Publication())
    write_publication(tmp_path / "one", tmp_path / "two", "me/two", Publication())
    first, second = [(tmp_path / name / "README.md").read_text() for name in ("one", "two")]
    assert second == first.replace("me/one", "me/two").replace("# one", "# two")
    assert "### Edits" in second


def latent_model(folder: Path, place: str, autoencoder=None) -> Path:
    """A small model of the latents of an autoencoder at `place`."""
    codec = CodecConfig(
        autoencoder=place, patch_size=2, image_height=8, image_width=8, image_channels=3, latent_channels=2,
        downsample=1,
    )  # fmt: skip
    config = ModelConfig(
        hidden_size=32, depth=2, num_heads=2, num_class_tokens=2, num_classes=2, token_dim=8, grid_height=4,
        grid_width=4,
    )  # fmt: skip
    spec = ModelSpec(model=config, codec=codec)
    if autoencoder is not None:
        spec = replace(spec, autoencoder_fingerprint=fingerprint(autoencoder))
    replace_model(folder, spec, Transformer(config).state_dict())
    return folder


def test_an_autoencoder_goes_along_or_is_told(hub: LocalHub, tmp_path: Path, capsys):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,), latent_channels=2, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    save_autoencoder(autoencoder, tmp_path / "vae")
    model = latent_model(tmp_path / "model", str(tmp_path / "vae"), autoencoder)
    assert cli.run(["publish", str(model), "--to", "me/latent"]) == 0
    assert "the autoencoder is inside" in capsys.readouterr().out
    assert str(tmp_path).encode() not in hub.files("me/latent")["config.json"]
    quick = SampleConfig(diffusion_steps=[2])
    images = Pipeline.load(model).generate([1], quick)
    torch.testing.assert_close(Pipeline.load("me/latent").generate([1], quick), images, atol=1e-4, rtol=0)

    named = latent_model(tmp_path / "named", "someone/vae")
    assert cli.run(["publish", str(named), "--to", "me/named"]) == 0
    assert "the autoencoder someone/vae is not inside" in capsys.readouterr().out
    assert "`someone/vae`, which is fetched from the hub" in hub.files("me/named")["README.md"].decode()

    kept = (named / "model.safetensors").rename(named / "raw.safetensors")
    shutil.copyfile(kept, named / "model.safetensors")
    assert cli.run(["publish", str(named), "--out", str(named)]) == 2
    assert "is the model itself, or inside of it; give another folder" in capsys.readouterr().err
    assert kept.is_file() and not (named / "README.md").exists()

    gone = latent_model(tmp_path / "gone", str(tmp_path / "nowhere"))
    assert cli.run(["publish", str(gone), "--to", "me/gone"]) == 2
    assert "give its place as --autoencoder PATH" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classify", "caption"])
def test_a_page_tells_how_to_use_what_was_trained_for_another_task(task: str, tmp_path: Path):
    out, model = tmp_path / task, tmp_path / "model"
    data = ["--data.source", "digits"] if task == "classify" else ["--data.source", "shapes"]
    if task == "classify":
        small = ["--model.hidden-size", "16", "--model.depth", "1", "--model.num-heads", "2"]
        assert cli.run(["train", "--config", "digits", *small, *SHORT, "--out", str(model)]) == 0
    begun = [str(model) if task == "classify" else "shapes", "--task", task]
    begun += ["--caption-images", "4"] * (task == "caption")
    assert cli.run(["finetune", *begun, *data, *SHORT, "--out", str(out)]) == 0
    write_publication(out, tmp_path / "page", "me/model", Publication())
    page = (tmp_path / "page" / "README.md").read_text()
    tag = {"classify": "image-classification", "caption": "image-to-text"}[task]
    assert f"pipeline_tag: {tag}" in page and f"causalfusion {task} photo.png --model me/model" in page
    again = f"causalfusion finetune MODEL --data DATA --task {task} --config training.toml"
    assert again in page and "causalfusion sample" not in page
    recipe = tmp_path / "page" / "training.toml"
    assert f"--task {task}" in recipe.read_text()
    once_more = [*begun, *data, "--config", str(recipe), "--out", str(tmp_path / "again")]
    assert cli.run(["finetune", *once_more]) == 0
    assert load_spec(latest_model(tmp_path / "again")).images_seen == 16


@pytest.mark.parametrize(("tokens", "command"), [(0, "sample"), (2, "sample --classes 0")])
def test_a_page_shows_a_command_that_its_model_takes(tokens: int, command: str, tmp_path: Path):
    """A model without class tokens refuses classes, of which a run without labels has one."""
    config = ModelConfig(
        hidden_size=32, depth=1, num_heads=2, num_class_tokens=tokens, num_classes=1, token_dim=12,
        grid_height=2, grid_width=2,
    )  # fmt: skip
    codec = CodecConfig(
        patch_size=2, image_height=4, image_width=4, image_channels=3, latent_channels=3, downsample=1
    )
    model, page = tmp_path / "model", tmp_path / "page"
    replace_model(model, ModelSpec(model=config, codec=codec), Transformer(config).state_dict())
    write_publication(model, page, "me/x", Publication())
    assert f"    causalfusion {command} --model me/x\n" in (page / "README.md").read_text()
    line = [*command.split(), "--model", str(page), "--images", "1", "--diffusion-steps", "1"]
    assert cli.run([*line, "--out", str(tmp_path / "out")]) == 0


def test_a_word_is_told_so_that_a_shell_takes_it(tmp_path: Path):
    word = FinetuneConfig(base="shapes", adapter="text-inversion", word="<heart>", like="red star")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "run.json").write_text(json.dumps(to_dict(RunConfig(finetune=word))))
    _write_recipe(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "training.toml").read_text()
    assert "--word '<heart>' --like 'red star'" in text


def test_the_page_of_a_model_of_any_size_says_so():
    codec = CodecConfig(image_height=64, image_width=64, image_channels=3, patch_size=4, max_area=4096)
    model = ModelConfig(grid_height=16, grid_width=16, token_dim=48, num_classes=2)
    page = model_card("me/any", ModelSpec(model=model, codec=codec), CardFacts(parameters=1))
    assert "of any size up to 4,096 pixels, by default 64x64, 3 channels: 256 tokens" in page
