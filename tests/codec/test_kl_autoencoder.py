"""The original KL autoencoder's weights in diffusers' network, against the recorded original."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from causalfusion.codec.autoencoder import fingerprint, open_autoencoder
from causalfusion.codec.kl_autoencoder import convert_kl_autoencoder
from causalfusion.errors import UserError
from causalfusion.interop.reference_autoencoder import generated_weights

RECORDED = (
    Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "autoencoder" / "vae.safetensors"
)


def _small_shapes() -> dict[str, list[int]]:
    """Two levels of 32 and 64 channels, 1 residual block, 4 latent channels, attention on the last level."""
    shapes: dict[str, list[int]] = {}

    def conv(name: str, out: int, into: int, side: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, into, side, side], [out]

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = [channels]

    def residual(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv1", out, into, 3)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    conv("encoder.conv_in", 32, 3, 3)
    conv("encoder.down.0.downsample.conv", 32, 32, 3)
    residual("encoder.down.0.block.0", 32, 32)
    residual("encoder.down.1.block.0", 32, 64)
    attention("encoder.down.1.attn.0", 64)
    conv("decoder.conv_in", 64, 4, 3)
    conv("decoder.up.1.upsample.conv", 64, 64, 3)
    residual("decoder.up.1.block.0", 64, 64)
    residual("decoder.up.1.block.1", 64, 64)
    residual("decoder.up.0.block.0", 64, 32)
    residual("decoder.up.0.block.1", 32, 32)
    for side in ("encoder", "decoder"):
        residual(f"{side}.mid.block_1", 64, 64)
        residual(f"{side}.mid.block_2", 64, 64)
        attention(f"{side}.mid.attn_1", 64)
    norm("encoder.norm_out", 64)
    conv("encoder.conv_out", 8, 64, 3)
    norm("decoder.norm_out", 32)
    conv("decoder.conv_out", 3, 32, 3)
    conv("quant_conv", 8, 8, 1)
    conv("post_quant_conv", 4, 4, 1)
    return shapes


@pytest.fixture(scope="module")
def official() -> torch.nn.Module:
    if not RECORDED.is_file():
        pytest.skip(f"the recorded autoencoder is not there: {RECORDED}")
    import json

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with safe_open(str(RECORDED), "pt") as file:
        weights = generated_weights(json.loads(file.metadata()["keys"]))
    torch.testing.assert_close(
        weights["decoder.conv_in.bias"][:4],
        torch.tensor([-0.0409561, 0.0830699, -0.0064481, 0.0385559]), atol=1e-7, rtol=0,
    )  # fmt: skip
    converted, settings = convert_kl_autoencoder(weights)
    with torch.device("meta"):
        autoencoder = AutoencoderKL(**settings)
    autoencoder.load_state_dict(converted, assign=True)
    return autoencoder.eval().requires_grad_(False)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("image", ["sq", "rect"])
def test_official_autoencoder(official, image: str) -> None:
    recorded = {
        name.split("/")[1]: value
        for name, value in load_file(RECORDED).items()
        if name.startswith(image + "/")
    }
    posterior = official.encode(recorded["image"]).latent_dist
    sample = (posterior.mean + posterior.std * recorded["noise"]) * 0.2325
    found = {
        "moments": posterior.parameters,
        "mean": posterior.mean,
        "logvar_clamped": posterior.logvar,
        "sample_scaled": sample,
        "decoded": official.decode(recorded["sample_scaled"] / 0.2325).sample,
    }
    errors = {name: _relative(value, recorded[name]) for name, value in found.items()}
    assert max(errors.values()) <= 1e-5, errors


def test_official_sizes(official) -> None:
    assert official.config.block_out_channels == (128, 128, 256, 256, 512)
    assert official.config.latent_channels == 16
    assert sum(p.numel() for p in official.parameters()) == 66_456_019


def test_checkpoint_file_equals_saved_folder(tmp_path: Path) -> None:
    weights = generated_weights(_small_shapes())
    torch.save({"model": weights}, tmp_path / "kl.ckpt")
    save_file(weights, tmp_path / "kl.safetensors")
    opened = open_autoencoder(str(tmp_path / "kl.ckpt"))
    autoencoder = opened.network
    assert (opened.latent_channels, opened.downsample, opened.image_channels) == (4, 2, 3)
    assert not any(p.requires_grad for p in autoencoder.parameters())
    autoencoder.save_pretrained(tmp_path / "folder")
    others = [open_autoencoder(str(tmp_path / name)).network for name in ("kl.safetensors", "folder")]
    assert {fingerprint(other) for other in others} == {fingerprint(autoencoder)}
    images = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    for other in others:
        torch.testing.assert_close(
            other.encode(images).latent_dist.parameters, autoencoder.encode(images).latent_dist.parameters
        )


def test_checkpoints_as_training_leaves_them(tmp_path: Path) -> None:
    """With the command line in a Namespace, under DistributedDataParallel's names, or the average alone."""
    weights = generated_weights(_small_shapes())
    expected = fingerprint(_opened(tmp_path / "bare.pt", weights))
    args = Namespace(lr=1e-4, data="images")
    assert fingerprint(_opened(tmp_path / "args.pt", {"model": weights, "args": args})) == expected
    parallel = {f"module.{name}": value for name, value in weights.items()}
    for name in ("ema", "model_ema"):
        content = {name: parallel, "args": args, "optimizer": {"state": {}}}
        assert fingerprint(_opened(tmp_path / f"{name}.pt", content)) == expected


def _opened(file: Path, content: object) -> torch.nn.Module:
    torch.save(content, file)
    return open_autoencoder(str(file)).network


def test_fingerprint_sees_one_number(tmp_path: Path) -> None:
    weights = generated_weights(_small_shapes())
    save_file(weights, tmp_path / "a.safetensors")
    weights["quant_conv.bias"][3] += 1e-6
    save_file(weights, tmp_path / "b.safetensors")
    a, b = (fingerprint(open_autoencoder(str(tmp_path / f"{name}.safetensors")).network) for name in "ab")
    assert a != b


@pytest.mark.parametrize("name", sorted(_small_shapes()))
def test_every_weight_is_needed(name: str) -> None:
    """Also those from whose presence the structure is read: what remains never fits."""
    weights = {key: torch.empty(shape) for key, shape in _small_shapes().items() if key != name}
    with pytest.raises(UserError, match=r"lacks|unexpected|no weight"):
        convert_kl_autoencoder(weights)


def test_no_weight_is_left_over() -> None:
    weights = {key: torch.empty(shape) for key, shape in _small_shapes().items()}
    converted, _ = convert_kl_autoencoder(weights | {"loss.discriminator.main.0.weight": torch.empty(1)})
    assert len(converted) == len(weights)
    with pytest.raises(UserError, match=r"unexpected weight decoder\.up\.0\.attn\.7\.q\.weight"):
        convert_kl_autoencoder(weights | {"decoder.up.0.attn.7.q.weight": torch.empty(1)})


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(path: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            open_autoencoder(str(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights = generated_weights(_small_shapes())
    assert "does not exist" in message(tmp_path / "nothing.ckpt")
    assert "does not exist" in message("vae/kl16.ckpt")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in message(tmp_path / "empty")
    for suffix in ("ckpt", "safetensors"):
        (tmp_path / f"junk.{suffix}").write_bytes(b"not weights at all")
        assert "damaged" in message(tmp_path / f"junk.{suffix}")
    torch.save({"model": Path("x")}, tmp_path / "objects.pt")
    assert "nothing was executed" in message(tmp_path / "objects.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    assert "holds no weights" in message(tmp_path / "other.pt")
    torch.save(weights | {"quant_conv.weight": torch.zeros(8, 9, 1, 1)}, tmp_path / "shape.pt")
    assert "quant_conv" in message(tmp_path / "shape.pt") or "do not fit" in message(tmp_path / "shape.pt")

    save_file(weights, tmp_path / "kl.safetensors")
    open_autoencoder(str(tmp_path / "kl.safetensors")).network.save_pretrained(tmp_path / "folder")
    file = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    saved = {name: value.clone() for name, value in load_file(file).items()}  # not mapped from the file
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(tmp_path / "folder")
    del saved["quant_conv.bias"]
    save_file(saved, file, metadata={"format": "pt"})
    assert "lacks weight quant_conv.bias" in message(tmp_path / "folder")

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no connection\nand a long story")

    monkeypatch.setattr(AutoencoderKL, "load_config", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert "owner/name is neither a folder nor a file here" in message("owner/name")
