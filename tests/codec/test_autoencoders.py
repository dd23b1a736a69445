"""Opening autoencoders of all kinds by their folders: ours give what diffusers' own gives."""

import json

import pytest
import torch

from causalfusion.codec.autoencoder import fingerprint, open_autoencoder, save_autoencoder
from causalfusion.codec.codec import open_codec
from causalfusion.codec.fixed_variance import FixedVarianceAutoencoder
from causalfusion.config import CodecConfig
from causalfusion.errors import UserError
from causalfusion.rng import derive_generator


def kl(folder, **changes):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    made = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **({"latent_channels": 16} | changes),
    ).eval()
    made.save_pretrained(folder)
    return made


def dc(folder):
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    made = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    ).eval()
    made.save_pretrained(folder)
    return made


def rae(folder, **changes):
    pytest.importorskip("transformers")
    rae_module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_rae")
    settings = {
        "encoder_type": "mae", "encoder_hidden_size": 64, "encoder_patch_size": 4,
        "encoder_num_hidden_layers": 1, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "patch_size": 8,
        "encoder_input_size": 16,
    }  # fmt: skip
    made = rae_module.AutoencoderRAE(**settings | changes).eval()
    made.save_pretrained(folder)
    return made


def fixed_variance(folder, **changes):
    sizes = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2}
    sizes |= {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    made = FixedVarianceAutoencoder(image_height=8, image_width=16, latent_channels=5, **sizes | changes)
    made.init_weights(torch.Generator().manual_seed(1))
    made.eval().save_pretrained(folder)
    return made


def codec_of(folder, height, width):
    return open_codec(CodecConfig(autoencoder=str(folder)), image_shape=(3, height, width))


def images(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


@torch.no_grad()
def test_a_kl_autoencoder_of_16_channels(tmp_path):
    own, x = kl(tmp_path), images(8, 12)
    codec = codec_of(tmp_path, 8, 12)
    assert codec.latent_shape == (16, 4, 6)
    posterior = own.encode(x).latent_dist
    mean, std = codec.moments(x)
    assert std is not None and torch.equal(mean, posterior.mean) and torch.equal(std, posterior.std)
    assert torch.equal(codec.decode(mean), own.decode(mean).sample.clamp(-1, 1))


@torch.no_grad()
def test_a_deep_compression_autoencoder(tmp_path):
    own, x = dc(tmp_path), images(8, 16)
    codec = codec_of(tmp_path, 8, 16)
    assert codec.latent_shape == (4, 2, 4)
    latent = own.encode(x).latent
    mean, std = codec.moments(x)
    assert torch.equal(mean, latent) and std is not None and not std.any()
    assert torch.equal(codec.encode_raw(x, torch.ones_like(mean)), latent), "no noise is added"
    assert torch.equal(codec.decode(latent), own.decode(latent).sample.clamp(-1, 1))


@torch.no_grad()
def test_a_representation_autoencoder_whose_pixels_are_in_0_1(tmp_path):
    own, x = rae(tmp_path), images(32, 32)
    # Its encoder resizes images to its own size, 16; the decoder gives 32.
    codec = codec_of(tmp_path, 32, 32)
    assert codec.latent_shape == (64, 4, 4) and codec.config.downsample == 8
    latent = own.encode((x + 1) / 2).latent
    mean = codec.encode_raw(x, None)
    assert torch.allclose(mean, latent, atol=1e-5)
    expected = own.decode(latent).sample * 2 - 1
    assert torch.allclose(codec.decode(latent), expected.clamp(-1, 1), atol=1e-6)
    with pytest.raises(UserError, match=r"the images are 16x16; the autoencoder .* takes 32x32 alone"):
        codec_of(tmp_path, 16, 16)


def test_latents_in_a_row_are_refused(tmp_path):
    rae(tmp_path, reshape_to_2d=False)
    with pytest.raises(UserError, match=r"row of tokens; expected reshape_to_2d true"):
        open_autoencoder(str(tmp_path))


@torch.no_grad()
def test_an_autoencoder_of_fixed_variance(tmp_path):
    own, x = fixed_variance(tmp_path), images(8, 16)
    codec = codec_of(tmp_path, 8, 16)
    assert codec.latent_shape == (5, 2, 4)
    mean, std = codec.moments(x)
    assert torch.equal(mean, own.encode(x).latent_dist.mean)
    assert std is not None and bool((std == 0.9375).all())
    assert torch.equal(codec.decode(mean), own.decode(mean).sample.clamp(-1, 1))
    with pytest.raises(UserError, match=r"the images are 16x16; the autoencoder .* takes 16x8 alone"):
        codec_of(tmp_path, 16, 16)


@torch.no_grad()
def test_patches_of_the_fixed_variance_autoencoder_are_where_they_belong(tmp_path):
    """The decoder's last layer alone decides a patch: a bias per (row, column, channel) shows the order."""
    own = fixed_variance(tmp_path)
    own.to_pixels.weight.zero_()
    own.to_pixels.bias.copy_(torch.arange(48.0))
    decoded = own.decode(torch.zeros(1, 5, 2, 4)).sample
    assert decoded.shape == (1, 3, 8, 16)
    for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 7, 13)):
        assert decoded[0, channel, row, column] == 16 * channel + 4 * (row % 4) + column % 4


def test_each_image_draws_its_own_deviation(tmp_path):
    """The noise of an image is its standard normal noise times one number, of variance 1 over images."""
    fixed_variance(tmp_path / "fixed")
    kl(tmp_path / "kl")
    codec, plain = codec_of(tmp_path / "fixed", 8, 16), codec_of(tmp_path / "kl", 8, 16)
    factors = []
    for image in range(400):
        noise = codec.draw_noise(derive_generator(0, image))
        standard = torch.randn(codec.latent_shape, generator=derive_generator(0, image))
        ratio = noise / standard
        assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)
        factors.append(ratio.mean())
    assert torch.stack(factors).square().mean() == pytest.approx(1, abs=0.2)
    assert torch.stack(factors).min() < 0
    same = torch.randn(plain.latent_shape, generator=derive_generator(0, 1))
    assert torch.equal(plain.draw_noise(derive_generator(0, 1)), same)


@pytest.mark.parametrize("make", [dc, rae, fixed_variance], ids=lambda make: make.__name__)
def test_a_saved_copy_is_the_same_autoencoder(tmp_path, make):
    make(tmp_path / "first")
    opened = open_autoencoder(str(tmp_path / "first"))
    save_autoencoder(opened.network, tmp_path / "second")
    again = open_autoencoder(str(tmp_path / "second"))
    assert fingerprint(again.network) == fingerprint(opened.network)
    assert not any(parameter.requires_grad for parameter in again.network.parameters())


def test_folders_that_are_no_autoencoder(tmp_path):
    fixed_variance(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match=r"of the class UNet2DModel; expected one of AutoencoderKL"):
        open_autoencoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_width": 32}))
    with pytest.raises(UserError, match=r"cannot be read"):
        open_autoencoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_depth": 2}))
    with pytest.raises(UserError, match=r"lacks weight decoder.blocks.1"):
        open_autoencoder(str(tmp_path))


def test_a_name_that_the_hub_does_not_give_is_one_line(monkeypatch, recwarn):
    def absent(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", absent)
    with pytest.raises(UserError, match=r"the hub does not give it \(no network\)"):
        open_autoencoder("nobody/nothing")
    assert not [str(warning.message) for warning in recwarn]
