"""Released checkpoints: read without executing anything, mapped strictly, sized by their shapes."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from causalfusion.config import ModelConfig
from causalfusion.errors import UserError
from causalfusion.interop.official import convert_official, convert_state_dict, official_name
from causalfusion.model.positions import sincos_positions
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.saved.folder import load_model, save_model

WEIGHTS = Path(__file__).resolve().parents[1] / "parity" / "data" / "B.weights.safetensors"


def official_state(
    hidden: int,
    depth: int,
    *,
    heads: int,
    token_dim: int = 16,
    grid: int = 4,
    classes: int = 10,
    condition: int = 4,
) -> dict[str, Tensor]:
    """A state dict in the released layout, of zeros that take no memory, with the fixed positions."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(()).expand(shape)

    state = {
        "pos_embed": sincos_positions(hidden, grid, grid)[None],
        "cond_pos_embed": zeros(1, condition, hidden),
        "x_proj.weight": zeros(hidden, token_dim),
        "x_proj.bias": zeros(hidden),
        "t_embedder.mlp.0.weight": zeros(hidden, 256),
        "t_embedder.mlp.0.bias": zeros(hidden),
        "t_embedder.mlp.2.weight": zeros(hidden, hidden),
        "t_embedder.mlp.2.bias": zeros(hidden),
        "y_embedder.embedding_table.weight": zeros(classes + 1, condition * hidden),
        "final_layer.0.weight": zeros(hidden),
        "final_layer.0.bias": zeros(hidden),
        "final_layer.1.weight": zeros(token_dim, hidden),
        "final_layer.1.bias": zeros(token_dim),
    }
    for i in range(depth):
        block = {
            **{f"norm{n}.{part}": (hidden,) for n in (1, 2) for part in ("weight", "bias")},
            **{f"attn.{x}_norm.{part}": (hidden // heads,) for x in "qk" for part in ("weight", "bias")},
            "attn.qkv.weight": (3 * hidden, hidden),
            "attn.proj.weight": (hidden, hidden),
            "attn.proj.bias": (hidden,),
            "mlp.fc1.weight": (4 * hidden, hidden),
            "mlp.fc1.bias": (4 * hidden,),
            "mlp.fc2.weight": (hidden, 4 * hidden),
            "mlp.fc2.bias": (hidden,),
        }
        state |= {f"blocks.{i}.{name}": zeros(*shape) for name, shape in block.items()}
    return state


@pytest.fixture
def small() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = official_state(32, 2, heads=2)
    return {
        key: value if key == "pos_embed" else torch.randn(value.shape, generator=generator)
        for key, value in state.items()
    }


def checkpoint(model: dict[str, Tensor], ema: dict[str, Tensor], **args: object) -> dict[str, object]:
    return {
        "model": {f"module.{key}": value for key, value in model.items()},
        "ema": {f"_orig_mod.{key}": value for key, value in ema.items()},
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "scheduler": {"last_epoch": 3, "lr_lambdas": [None]},
        "train_steps": 700,
        "start_epoch": 2,
        "args": argparse.Namespace(**args),
    }


@pytest.mark.parametrize(
    ("hidden", "depth", "heads"), [(1024, 24, 16), (1280, 32, 20), (1408, 48, 22)], ids=["L", "XL", "H48"]
)
def test_the_released_sizes_are_read_off_the_shapes(hidden: int, depth: int, heads: int):
    with torch.device("meta"):
        state = official_state(hidden, depth, heads=heads, grid=16, classes=1000, condition=64)
    config, weights = convert_state_dict(state, learnable_positions=False)
    assert config == ModelConfig(
        hidden_size=hidden, depth=depth, num_heads=heads, num_class_tokens=64, num_classes=1000,
        token_dim=16, grid_height=16, grid_width=16,
    )  # fmt: skip
    with torch.device("meta"):
        model = Transformer(config)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in model.state_dict().items()}
    if depth == 24:
        assert count_parameters(model) == pytest.approx(369e6, rel=2e-3)


@pytest.mark.parametrize("mlp_size", [81, 85, 107, 129, 128, 192])
def test_any_mlp_size_comes_back_from_its_ratio(small: dict[str, Tensor], mlp_size: int):
    for i in range(2):
        small[f"blocks.{i}.mlp.fc1.weight"] = torch.zeros(mlp_size, 32)
        small[f"blocks.{i}.mlp.fc1.bias"] = torch.zeros(mlp_size)
        small[f"blocks.{i}.mlp.fc2.weight"] = torch.zeros(32, mlp_size)
    config, _ = convert_state_dict(small)
    assert int(config.hidden_size * config.mlp_ratio) == mlp_size


def test_a_full_checkpoint_gives_ema_raw_weights_and_facts(tmp_path: Path, small: dict[str, Tensor]):
    ema = {key: value if key == "pos_embed" else value / 2 for key, value in small.items()}
    path = tmp_path / "0000700.pt"
    torch.save(checkpoint(small, ema, global_batch_size=256, num_classes=10), path)
    spec, weights, raw, _ = convert_official(path, autoencoder="kl16.ckpt")
    assert raw is not None
    assert torch.equal(weights["image_in.weight"], small["x_proj.weight"] / 2)
    assert torch.equal(raw["image_in.weight"], small["x_proj.weight"])
    assert spec.images_seen == 700 * 256
    assert spec.model.position_embedding == "sincos"
    assert (spec.codec.scale, spec.codec.latent_channels, spec.codec.patch_size) == (0.2325, 16, 1)
    assert (spec.codec.image_height, spec.codec.downsample) == (4 * 16, 16)
    save_model(tmp_path / "out", spec, weights, raw)
    model, loaded = load_model(tmp_path / "out", "raw")
    assert loaded == spec
    for name, value in model.state_dict().items():
        official = small[official_name(name)]
        assert torch.equal(value, official.reshape(value.shape))


def test_a_position_table_that_drifted_in_the_ema_is_kept_as_it_is(tmp_path: Path, small: dict[str, Tensor]):
    drifted = {**small, "pos_embed": small["pos_embed"] + 1e-4}
    torch.save(checkpoint(small, drifted), tmp_path / "x.pt")
    spec, weights, raw, _ = convert_official(tmp_path / "x.pt")
    assert spec.model.position_embedding == "learnable"
    assert raw is not None
    assert torch.equal(weights["image_position"], drifted["pos_embed"][0])
    assert torch.equal(raw["image_position"], small["pos_embed"][0])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_of_any_kind_is_read(tmp_path: Path, small: dict[str, Tensor], suffix: str):
    path = tmp_path / f"model{suffix}"
    prefixed = {f"module._orig_mod.{key}": value for key, value in small.items()}
    if suffix == ".pt":
        torch.save({key: value.half() for key, value in prefixed.items()}, path)
    else:
        save_file({key: value.half() for key, value in prefixed.items()}, path)
    spec, weights, raw, _ = convert_official(path)
    assert raw is None
    assert spec.images_seen == 0
    assert weights["norm_out.bias"].dtype == torch.float32
    assert torch.equal(weights["norm_out.bias"], small["final_layer.0.bias"].half().float())


def test_settings_in_the_checkpoint_or_given_decide_the_patch_size(tmp_path: Path, small: dict[str, Tensor]):
    torch.save(small, tmp_path / "bare.pt")
    spec, _, _, notes = convert_official(tmp_path / "bare.pt")
    assert spec.codec.patch_size == 1
    assert any("--patch-size" in note for note in notes)
    assert any("--autoencoder" in note for note in notes)
    spec, _, _, notes = convert_official(tmp_path / "bare.pt", patch_size=2, autoencoder="sd")
    assert (spec.codec.patch_size, spec.codec.latent_channels, spec.codec.scale) == (2, 4, 0.18215)
    assert spec.codec.image_height == 4 * 2 * 8
    assert notes == []
    torch.save(checkpoint(small, small, patch_size=2), tmp_path / "args.pt")
    assert convert_official(tmp_path / "args.pt").spec.codec.latent_channels == 4
    with pytest.raises(UserError, match="patch size is 3"):
        convert_official(tmp_path / "bare.pt", patch_size=3)


def test_a_table_without_null_row_gets_one(tmp_path: Path, small: dict[str, Tensor]):
    torch.save(checkpoint(small, small, num_classes=11), tmp_path / "x.pt")
    spec, weights, _, notes = convert_official(tmp_path / "x.pt")
    assert spec.model.num_classes == 11
    assert weights["class_embedding.table.weight"].shape == (12, 4 * 32)
    assert any("null" in note for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.norm2.bias": None}, "lacks weight blocks.1.norm2.bias"),
        ({"cond_pos_embed": None}, "lacks weight cond_pos_embed"),
        ({"blocks.0.attn.qkv.bias": torch.zeros(96)}, "unknown weight blocks.0.attn.qkv.bias"),
        ({"image_in.weight": torch.zeros(32, 16)}, "unknown weight image_in.weight"),
        ({"blocks.7.norm1.weight": torch.zeros(32)}, "blocks.2.attn.k_norm.bias"),
        ({"x_proj.bias": torch.zeros(31)}, "x_proj.bias has shape"),
        ({"pos_embed": torch.zeros(1, 15, 32)}, "15 positions"),
        ({"final_layer.0.bias": torch.full((32,), torch.nan)}, "final_layer.0.bias holds values"),
        ({"extra": 3}, "extra is a int"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, small: dict[str, Tensor], change: dict[str, object], message: str
):
    state = {key: value for key, value in {**small, **change}.items() if value is not None}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert_official(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_checkpoint_that_would_run_something_is_refused(
    tmp_path: Path, small: dict[str, Tensor], zip_format: bool
):
    marker = tmp_path / "executed"
    content = checkpoint(small, small, note=Malicious(marker))
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UserError, match=r"(posix|os|nt)\.system") as caught:
        convert_official(tmp_path / "x.pt")
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x89PNG\r\n", "truncated", "list"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_one_clear_line(
    tmp_path: Path, small: dict[str, Tensor], content: bytes | str, suffix: str
):
    path = tmp_path / f"x{suffix}"
    if content == "list":
        torch.save([1, 2], path)
    elif content == "truncated":
        torch.save(small, path)
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        path.write_bytes(bytes(content))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        convert_official(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to programmers


def test_a_missing_file_and_mixed_prefixes_are_errors(tmp_path: Path, small: dict[str, Tensor]):
    with pytest.raises(UserError, match="not a file"):
        convert_official(tmp_path / "none.pt")
    torch.save({**small, "module.x_proj.bias": small["x_proj.bias"]}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x_proj\.bias is there twice"):
        convert_official(tmp_path / "x.pt")


def test_recorded_weights_convert_by_their_own_settings():
    spec, weights, _, _ = convert_official(WEIGHTS)
    recorded = load_file(WEIGHTS)
    assert (spec.model.hidden_size, spec.model.num_heads, spec.model.depth) == (32, 2, 3)
    assert spec.model.position_embedding == "learnable"
    assert torch.equal(weights["image_position"], recorded["pos_embed"][0])
