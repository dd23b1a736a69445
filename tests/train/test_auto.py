"""Settings that follow from the data and the machine."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import cli
from causalfusion.config import CodecConfig, DataConfig, RunConfig, TrainConfig
from causalfusion.config.recipes import merge
from causalfusion.config.serialize import from_dict
from causalfusion.data import open_source
from causalfusion.estimate import devices
from causalfusion.train.auto import DataSummary, as_begun, look_at, settings_for, settings_from

PHOTOS = DataSummary("folder", 2000, 10, False, [375, 480, 600], one_size=False)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rate(monkeypatch):
    """Rates are not measured: the machine that runs the tests has no say in them."""
    monkeypatch.setattr(devices, "measure_gemm_rate", lambda dtype, device, repeats: 1e11)


def config_of(chosen: dict) -> RunConfig:
    data = {"source": "folder", "path": "x"}
    return from_dict(RunConfig, merge([{"data": data}, chosen]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize(
    "facts",
    [
        PHOTOS,
        replace(PHOTOS, num_images=5, num_classes=0),
        replace(PHOTOS, sides=[8], one_size=True, in_colour=False),
        replace(PHOTOS, sides=[1], one_size=True),
        replace(PHOTOS, sides=[33, 50], has_captions=True, caption_words=400),
    ],
)
def test_what_is_chosen_is_a_valid_run(facts, device, low):
    config = config_of(settings_from(facts, RunConfig(), device, low_precision=low))
    side, patch = config.data.image_size, config.codec.patch_size
    assert side % patch == 0 and 1 <= side <= 64
    assert config.train.batch_size <= max(facts.num_images, 8)
    assert config.train.minutes > 0
    assert bool(config.text.tokenizer) == facts.has_captions
    assert (config.model.num_class_tokens > 0) == (facts.num_classes > 1)


def test_photographs_may_be_mirrored_digits_and_captions_may_not():
    def flip(facts):
        return settings_from(facts, RunConfig(), "cpu", low_precision=False)["data"]["flip"]

    assert flip(PHOTOS)
    assert not flip(replace(PHOTOS, in_colour=False))
    assert not flip(replace(PHOTOS, has_captions=True))


def test_what_the_user_gave_decides_what_follows_from_it():
    given = RunConfig(data=DataConfig(image_size=64))
    chosen = settings_from(PHOTOS, given, "cpu", low_precision=False)
    assert chosen["data"]["image_size"] == 64 and chosen["codec"]["patch_size"] == 8
    latents = RunConfig(codec=CodecConfig(autoencoder="kl16.ckpt"))
    chosen = settings_from(PHOTOS, latents, "cpu", low_precision=False)
    assert "codec" not in chosen and chosen["data"]["image_size"] == 256


@pytest.mark.parametrize(
    ("size", "patch"),
    [(64, 8), (28, 4), (100, 10), ("320x192", 32), ("192x320", 32), (4, 1), (97, 12)],
)
def test_patches_divide_the_sides_that_the_user_gave(size, patch):
    """Where a divisor is near; of a side such as 97, the data say which sizes would do."""
    given = RunConfig(data=DataConfig(image_size=size))
    assert settings_from(PHOTOS, given, "cpu", low_precision=False)["codec"]["patch_size"] == patch


@pytest.mark.parametrize(
    ("own", "side", "patch"), [(28, 28, 4), (32, 32, 4), (300, 32, 4), (21, 21, 3), (25, 24, 3), (17, 16, 2)]
)
def test_small_images_keep_their_size_where_patches_of_nearly_that_size_divide_it(own, side, patch):
    chosen = settings_from(replace(PHOTOS, sides=[own]), RunConfig(), "cpu", low_precision=False)
    assert (chosen["data"]["image_size"], chosen["codec"]["patch_size"]) == (side, patch)


def test_a_side_is_chosen_for_the_patches_that_the_user_gave():
    given = RunConfig(codec=CodecConfig(patch_size=5))
    chosen = settings_from(PHOTOS, given, "cpu", low_precision=False)
    assert (chosen["data"]["image_size"], chosen["codec"]["patch_size"]) == (30, 5)


@pytest.mark.parametrize(
    ("asked", "warmup"),
    [({}, 1600), ({"images": 3000}, 300), ({"epochs": 1.0}, 200), ({"minutes": 1.0}, 1600)],
)
def test_the_rate_rises_within_a_short_training(asked, warmup):
    given = RunConfig(train=TrainConfig(**asked))
    assert settings_from(PHOTOS, given, "cpu", low_precision=False)["train"]["warmup_images"] == warmup


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(25):
            pixels = random.integers(0, 255, (20, 24 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_is_enough(photos):
    settings, lines = settings_for(RunConfig(data=DataConfig(source="folder", path=str(photos))), CPU)
    config = config_of(settings)
    assert config.out == "runs/photos"
    assert "50 images of 20 pixels and more in 2 classes" in lines[0]
    said = " ".join(lines)
    for option in ("--data.image-size 20", "--codec.patch-size 2", "--train.minutes 10", "--out runs/photos"):
        assert option in said
    assert "1000000000" not in said


def test_a_width_alone_takes_the_chosen_number_of_heads(photos):
    """64 is no multiple of the default number of heads, 6, but of the chosen one, 4."""
    prepared = cli.prepare(["train", str(photos), "--model.hidden-size", "64", "--device", "cpu"])
    assert prepared.settings["model"]["num_heads"] == 4
    assert "--model.num-heads 4" in " ".join(prepared.said)


def test_a_run_that_has_begun_keeps_what_it_began_with(tmp_path):
    state = tmp_path / "checkpoints" / "000000000064" / "state"
    state.mkdir(parents=True)
    (state / "run.json").write_text(json.dumps({"train": {"batch_size": 32, "minutes": 10.0}}))
    chosen = {
        "train": {"batch_size": 64, "minutes": 7.0}, "diffusion": {"path": "rectified_flow"}
    }  # fmt: skip
    # A setting that came later did what its default does: the run has DDPM's path.
    kept = {"train": {"batch_size": 32, "minutes": 7.0}, "diffusion": {"path": "ddpm"}}
    assert as_begun(tmp_path, chosen) == kept
    assert as_begun(tmp_path / "new", chosen) == chosen


def test_a_cache_says_itself_what_it_holds(tmp_path):
    settings, lines = settings_for(RunConfig(data=DataConfig(cache=str(tmp_path / "latents"))), CPU)
    assert settings == {"out": "runs/latents"} and lines == []


@pytest.mark.parametrize("length", ["train.images", "train.epochs"])
def test_a_length_that_is_given_is_not_ended_by_a_time(photos, length):
    given = RunConfig(data=DataConfig(source="folder", path=str(photos)))
    settings, lines = settings_for(given, CPU, {length, "data.path"})
    assert "minutes" not in settings["train"] and "minutes 10" not in " ".join(lines)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_accelerators_without_settings_of_their_own_take_those_of_gpus(photos, kind):
    given = RunConfig(data=DataConfig(source="folder", path=str(photos)))
    settings, _ = settings_for(given, torch.device(kind))
    assert settings == settings_from_gpu(given)


def settings_from_gpu(given: RunConfig) -> dict:
    facts = look_at(open_source(given.data), "folder")
    return {"out": "runs/photos", **settings_from(facts, given, "cuda", low_precision=False)}
