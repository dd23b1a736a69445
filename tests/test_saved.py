"""Model folders: one meaning for ever, whole or refused, complete in themselves, free to move."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from causalfusion.codec.autoencoder import fingerprint, open_autoencoder, save_autoencoder
from causalfusion.config import CodecConfig, DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.config.recipes import load_config
from causalfusion.config.serialize import flat, to_dict
from causalfusion.doctor import check_model
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.interop.bundle import bundle_model
from causalfusion.model.transformer import Transformer
from causalfusion.saved.earlier_formats import FORMAT_1, FORMAT_2, FORMAT_3, LATER_IN_1, bring_forward
from causalfusion.saved.folder import (
    FORMAT,
    ModelSpec,
    load_model,
    load_spec,
    packaged_models,
    read_spec,
    save_model,
)
from causalfusion.saved.replace import replace_folder
from causalfusion.train.log import read_log
from causalfusion.train.run import train

OLD_RUN = Path(__file__).parent / "fixtures" / "format_1_run"
"""A run of 32 images by the code before causalfusion-2, and images of its checkpoint."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of pixels, 16 numbers wide."""
    return write_model(tmp_path / "model")


def write_model(folder: Path, **codec: object) -> Path:
    settings = {"patch_size": 4, "image_height": 8, "image_width": 8, "image_channels": 1} | {
        "latent_channels": 1, "downsample": 1,
    } | codec  # fmt: skip
    config = CodecConfig(**settings)  # pyright: ignore[reportArgumentType]
    cell = config.downsample * config.patch_size
    model = ModelConfig(
        hidden_size=16, depth=2, num_heads=2, num_class_tokens=1, num_classes=2,
        token_dim=config.patch_size**2 * config.latent_channels,
        grid_height=config.image_height // cell, grid_width=config.image_width // cell,
    )  # fmt: skip
    transformer = Transformer(model)
    transformer.init_weights(torch.Generator().manual_seed(0))
    save_model(folder, ModelSpec(model=model, codec=config), transformer.state_dict())
    return folder


def change(folder: Path, **values: object) -> None:
    """Set keys of config.json, named table__key; None removes them."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        *tables, key = name.split("__")
        table = config
        for part in tables:
            table = table[part]
        if value is None:
            del table[key]
        else:
            table[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Pipeline.load(folder)
    return str(caught.value)


def test_every_key_is_required(folder):
    whole = json.loads((folder / "config.json").read_text())
    assert whole["format"] == FORMAT == "causalfusion-6"
    for name in flat({key: value for key, value in whole.items() if key != "format"}):
        (folder / "config.json").write_text(json.dumps(whole))
        change(folder, **{name.replace(".", "__"): None})
        message = refused(folder)
        assert f"setting {name} is missing" in message and "\n" not in message
    shutil.copytree(packaged_models()["shapes"], folder, dirs_exist_ok=True)
    change(folder, model__position_embedding=None)
    assert "setting model.position_embedding is missing" in refused(folder)


def test_an_earlier_folder_gives_the_images_that_it_gave():
    checkpoint = OLD_RUN / "checkpoints" / "000000000032"
    images = Pipeline.load(OLD_RUN).generate([0, 1, 2, 3], SampleConfig(diffusion_steps=[5]), seed=3)
    expected = np.load(OLD_RUN / "images.npy")
    assert np.abs(images.numpy() - expected).max() <= 2 / 255
    _, filled = read_spec(checkpoint)
    assert filled == ["autoencoder_fingerprint = ''", "class_dropout = None"]
    findings = {one.name: one for one in check_model(checkpoint, torch.device("cpu"))}
    assert "class_dropout = None" in findings["earlier format"].value


def test_a_model_of_a_fixed_number_of_ar_steps_is_checked_with_as_many(folder):
    def steps() -> str:
        findings = {one.name: one.value for one in check_model(folder, torch.device("cpu"))}
        return findings["attention in training"].partition(":")[0].partition(", ")[2]

    assert steps() == "4 AR steps"
    change(folder, factorization__distribution="fixed", factorization__num_ar_steps=1)
    assert steps() == "1 AR step"


def test_an_earlier_run_goes_on_as_it_would_have(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    config = load_config(
        "digits", codec={"patch_size": 4},
        model={"hidden_size": 8, "depth": 1, "num_heads": 1, "num_class_tokens": 1},
        train={"batch_size": 8, "images": 64, "evaluate_every": 0, "warmup_images": 0, "log_every": 1},
    )  # fmt: skip
    train(replace(config, out=str(run)), device="cpu", show_progress=False)
    losses = [r["loss"] for r in read_log(run / "log.jsonl") if r["kind"] == "train"]
    assert losses[4:] == pytest.approx([1.3896669, 1.3889678, 1.4292725, 1.4544756], abs=1e-4)


def test_what_an_earlier_folder_lacks_means_what_it_meant_then():
    """All later keys are filled in, with the values the code used before it knew them."""
    now = to_dict(load_spec(packaged_models()["shapes"]))
    earlier = {key: value for key, value in now.items() if key not in LATER_IN_1}
    for name in LATER_IN_1:
        table, _, key = name.partition(".")
        if key and isinstance(earlier.get(table), dict):
            earlier[table] = {k: v for k, v in earlier[table].items() if k != key}
    complete, filled = bring_forward(FORMAT_1, earlier)
    assert {line.partition(" = ")[0] for line in filled} == LATER_IN_1
    assert complete["diffusion"]["loss_weight"] == "none" and complete["model"]["vocab_size"] == 0
    assert flat(complete).keys() == flat(now).keys()


def test_a_folder_of_format_2_has_the_noise_that_it_had():
    now = to_dict(load_spec(packaged_models()["shapes"]))
    now["diffusion"] = to_dict(DiffusionConfig(prediction_type="sample", loss_weight="min_snr"))
    kept = {"num_timesteps", "beta_start", "beta_end", "prediction_type", "loss_weight", "snr_limit"}
    earlier = copy.deepcopy(now)
    earlier["diffusion"] = {k: v for k, v in now["diffusion"].items() if k in kept}
    del earlier["model"]["predicts_variance"]
    complete, filled = bring_forward(FORMAT_2, earlier)
    assert flat(complete) == flat(now) and not filled, "nothing that its own format let it leave out"
    assert (complete["diffusion"]["path"], complete["diffusion"]["beta_schedule"]) == ("ddpm", "linear")


@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_folder_of_format_3_has_the_block_that_it_had(qk_norm):
    now = to_dict(load_spec(packaged_models()["shapes"]))
    later = {
        "num_kv_heads", "mlp", "mlp_hidden", "norm", "out_norm", "bias", "dropout", "attention_dropout",
        "rope", "adaln_size", "adaln_rank", "input_norm", "context", "encoder", "head",
    }  # fmt: skip
    earlier = copy.deepcopy(now)
    earlier["model"] = {k: v for k, v in now["model"].items() if k not in later} | {"qk_norm": qk_norm}
    complete, filled = bring_forward(FORMAT_3, earlier)
    now["model"]["qk_norm"]["kind"] = "layer_norm" if qk_norm else "none"
    assert flat(complete) == flat(now) and not filled


@pytest.mark.parametrize("name", ["causalfusion-7", 2, None])
def test_other_formats_are_refused(folder, name):
    change(folder, format=name)
    assert "is not in a format from causalfusion-1 to causalfusion-6" in refused(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codec__scale": float("nan")}, "is not valid JSON"),
        ({"codec__scale": 1e999}, "is not valid JSON"),
        ({"model__depth": 1_000_000}, "model.depth is 1000000; expected 1 to 1000"),
        ({"model__depth": 900}, "config.json says model.depth 900, its weights have 2 blocks"),
        ({"model__hidden_size": 40_000_000}, "model.hidden_size is 40000000; expected 1 to 65536"),
        ({"model__hidden_size": 65_536}, "has shape"),
        ({"codec__image_height": 48}, "the codec makes (rows, columns, numbers in a token)"),
        ({"model__num_classes": 9_999_999}, "has shape"),
        ({"model__num_classes": -1}, "model.num_classes is -1; expected 0 to"),
        ({"model__mlp_ratio": 1e300}, "model.mlp_ratio is 1e+300"),
        ({"codec__patch_size": 10**9}, "codec.patch_size is 1000000000"),
        ({"class_names": "cat"}, "class_names is 'cat'; expected a list"),
        ({"images_seen": [1]}, "images_seen is [1]; expected a value of type int"),
        ({"model": []}, "model is []; expected a table"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_memory_is_taken(folder, values, message):
    change(folder, **values)
    assert message in refused(folder)


def test_weights_of_other_types_or_not_finite_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "blocks.0.attention.qkv.weight" if "blocks.0.attention.qkv.weight" in weights else min(weights)
    for dtype in (torch.float64, torch.int8, torch.bool):
        save_file({**weights, name: weights[name].to(dtype)}, path)
        assert f"{name} is stored as" in refused(folder)
    for dtype in (torch.float16, torch.bfloat16):
        save_file({**weights, name: weights[name].to(dtype)}, path)
        load_model(folder)
    weights[name].flatten()[3] = float("nan")
    save_file(weights, path)
    assert f"{name} holds values that are not finite" in refused(folder)


# A model of latents


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, Path]:
    """Two of the same layout and other weights, and one with other latents."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    base, found = tmp_path_factory.mktemp("autoencoders"), {}
    for seed, (name, channels) in enumerate([("own", 2), ("other", 2), ("wider", 3)]):
        torch.manual_seed(seed)
        made = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(8,), latent_channels=channels, norm_num_groups=4, sample_size=8,
        )  # fmt: skip
        save_autoencoder(made, base / name)
        found[name] = base / name
    return found


@pytest.fixture
def latent_model(tmp_path, autoencoders) -> Path:
    """A model folder whose autoencoder is gone from where it was."""
    folder = write_model(
        tmp_path / "latent", autoencoder=str(tmp_path / "gone"), image_channels=3, latent_channels=2
    )
    change(folder, autoencoder_fingerprint=fingerprint(open_autoencoder(str(autoencoders["own"])).network))
    return folder


def test_an_autoencoder_is_given_at_use_and_known_by_its_weights(latent_model, autoencoders):
    assert "give its place as --autoencoder PATH" in refused(latent_model)
    images = Pipeline.load(latent_model, autoencoder=str(autoencoders["own"])).generate(
        [0], SampleConfig(diffusion_steps=[2])
    )
    assert images.shape == (1, 3, 8, 8)
    for wrong, reason in (("other", "hash is"), ("wider", "latents differ")):
        with pytest.raises(UserError, match=f"is not the autoencoder that the model .*{reason}"):
            Pipeline.load(latent_model, autoencoder=str(autoencoders[wrong]))


def test_a_model_of_pixels_takes_no_autoencoder(folder, autoencoders):
    with pytest.raises(UserError, match="is a model of pixels"):
        Pipeline.load(folder, autoencoder=str(autoencoders["own"]))


def test_a_bundle_is_complete_in_itself_and_moves(latent_model, autoencoders, tmp_path, monkeypatch):
    settings = SampleConfig(diffusion_steps=[2])
    expected = Pipeline.load(latent_model, autoencoder=str(autoencoders["own"])).generate([0, 1], settings)
    (latent_model / "sample.toml").write_text("temperature = 1.0\n")
    bundle_model(latent_model, tmp_path / "bundle", str(autoencoders["own"]))
    shutil.move(tmp_path / "bundle", tmp_path / "elsewhere")
    shutil.rmtree(latent_model)
    monkeypatch.chdir(tmp_path / "elsewhere")  # nothing depends on where we are
    moved = Pipeline.load(tmp_path / "elsewhere")
    assert torch.equal(moved.generate([0, 1], settings), expected)
    assert moved.spec.codec.autoencoder == "autoencoder" and (tmp_path / "elsewhere/sample.toml").is_file()
    with pytest.raises(UserError, match="is the model itself"):
        bundle_model(tmp_path / "elsewhere", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            '{"model_type": "llama"}',
            "holds other things than a model of causalfusion; give another --out",
        ),
        (
            "notes.txt",
            "mine",
            "holds notes.txt beside a model of causalfusion; give another --out, or move it away",
        ),
        ("photos", None, "holds photos beside a model of causalfusion"),
    ],
)
def test_only_a_model_of_ours_is_replaced(folder, name, content, message):
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_text(content)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=message):
        replace_folder(folder, lambda _: pytest.fail("written"))
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_model_of_ours_is_replaced_whole(folder):
    (folder / "sample.toml").write_text("")
    replace_folder(folder, lambda new: shutil.copytree(folder, new, ignore=lambda *_: ["sample.toml"]))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_others_may_read_all_that_they_may_read_of_new_files(
    digits_run: Path, autoencoders: dict[str, Path], tmp_path: Path
):
    """safetensors 0.8 makes its files readable by the user alone."""
    (tmp_path / "new").touch()
    folders = (digits_run, *autoencoders.values())
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json"}
    modes = {path.stat().st_mode for path in files if path.suffix in (".safetensors", ".json", ".toml")}
    assert modes == {(tmp_path / "new").stat().st_mode}
