"""Pixels to tokens and back, the order of the numbers in a token, scale and shift."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from causalfusion.codec.codec import Codec, measure_statistics, open_codec
from causalfusion.codec.patches import patchify, unpatchify
from causalfusion.config import CodecConfig
from causalfusion.errors import UserError

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "C.infer.safetensors"


class Averages:
    """Stands in for an autoencoder: latents are 2x2 averages, their deviation |average|; decoding repeats."""

    class Posterior:
        def __init__(self, images: torch.Tensor) -> None:
            self.mean = torch.nn.functional.avg_pool2d(images, 2)
            self.std = self.mean.abs()

    def to(self, device: torch.device) -> Averages:
        return self

    def encode(self, images: torch.Tensor) -> Averages:
        self.latent_dist = Averages.Posterior(images)
        return self

    def decode(self, latents: torch.Tensor) -> Averages:
        self.sample = latents.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return self


def _averages_codec(scale: float = 1.0, shift: float = 0.0) -> Codec:
    config = CodecConfig(
        autoencoder="averages", image_height=8, image_width=12, image_channels=3,
        latent_channels=3, downsample=2, scale=scale, shift=shift,
    )  # fmt: skip
    return Codec(config, Averages())


@settings(max_examples=50)
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 4), rows=st.integers(1, 4), columns=st.integers(1, 4),
    patch=st.integers(1, 3),
)  # fmt: skip
def test_patches_round_trip(batch: int, channels: int, rows: int, columns: int, patch: int) -> None:
    shape = (batch, channels, rows * patch, columns * patch)
    latents = torch.arange(math.prod(shape)).reshape(shape)
    tokens = patchify(latents, patch)
    assert tokens.shape == (batch, rows * columns, patch**2 * channels)
    assert torch.equal(unpatchify(tokens, rows, columns, patch), latents)
    # One number of one token, by its place: raster order of tokens, channels fastest within one.
    b, c, y, x = batch - 1, channels - 1, rows * patch - 1, (columns - 1) * patch
    assert (
        tokens[b, (rows - 1) * columns + columns - 1, (y % patch * patch) * channels + c]
        == latents[b, c, y, x]
    )


def test_patches_never_cut_latents_off() -> None:
    with pytest.raises(ValueError):
        patchify(torch.zeros(2, 3, 4, 5), 2)
    with pytest.raises(ValueError):  # the right amount of numbers, of another grid
        unpatchify(torch.zeros(2, 6, 12), 2, 2, 2)


def test_patch_order_is_the_recorded_one() -> None:
    if not RECORDED.is_file():
        pytest.skip(f"the recording is not there: {RECORDED}")
    recorded = load_file(RECORDED)
    for name, latents in (("clean_tokens", recorded["x0"]), ("noised_tokens", recorded["xt"])):
        order = recorded["ids_shuffle"][..., None].expand_as(recorded[name])
        assert torch.equal(patchify(latents, 2).gather(1, order), recorded[name])


@settings(max_examples=50)
@given(scale=st.floats(0.05, 20), shift=st.floats(-3, 3), patch=st.sampled_from([1, 2, 4]))
def test_pixels_round_trip(scale: float, shift: float, patch: int) -> None:
    config = CodecConfig(patch_size=patch, scale=scale, shift=shift)
    codec = open_codec(config, image_shape=(3, 8, 4))
    images = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = codec.encode_tokens(images, None)
    assert tokens.shape == (2, codec.num_tokens, codec.token_dim)
    assert (codec.grid_height, codec.grid_width) == (8 // patch, 4 // patch)
    torch.testing.assert_close(codec.decode_tokens(tokens), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.encode(images, None), (images - shift) * scale)


def test_every_grey_level_survives() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    codec = open_codec(CodecConfig(patch_size=2, scale=0.7, shift=0.1), image_shape=(1, 16, 16))
    images = levels.float() / 127.5 - 1
    decoded = codec.to_uint8(codec.decode_tokens(codec.encode_tokens(images, None)))
    assert np.array_equal(decoded[0, :, :, 0], levels[0, 0].numpy())


def test_latents_are_drawn_before_the_scale() -> None:
    codec = _averages_codec(scale=0.2325, shift=0.5)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 12, generator=generator) * 2 - 1
    noise = torch.randn(2, 3, 4, 6, generator=generator)
    mean = torch.nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(codec.encode(images, None), (mean - 0.5) * 0.2325)
    torch.testing.assert_close(codec.encode(images, noise), (mean + mean.abs() * noise - 0.5) * 0.2325)
    assert codec.latent_shape == (3, 4, 6)


def test_decoded_images_stay_in_range() -> None:
    codec = open_codec(CodecConfig(), image_shape=(1, 2, 2))
    assert codec.decode(torch.tensor([[[[-7.0, 0.25], [1.0, 9.0]]]])).flatten().tolist() == [-1, 0.25, 1, 1]


@pytest.mark.parametrize("latents", ["mode", "sample"])
def test_measured_latents_have_mean_0_and_deviation_1(latents: Literal["mode", "sample"]) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(64, 3, 8, 12, generator=generator) * 0.3 + 0.4
    codec = _averages_codec()
    codec.config = replace(codec.config, latents=latents)
    mean, std = measure_statistics(codec, images.split(10))
    raw = codec.encode_raw(images, None).double()
    spread = raw.square().mean() if latents == "sample" else 0  # of the posteriors: their deviation is |mean|
    assert mean == pytest.approx(float(raw.mean()), rel=1e-9)
    assert std == pytest.approx(float((raw.var(correction=0) + spread).sqrt()), rel=1e-9)
    measured = codec.with_statistics(mean, std)
    assert measured.config.normalization == "given"
    many = images.repeat(50, 1, 1, 1)  # 230,400 draws: their deviation is known to half a percent
    noise = torch.randn(3200, *codec.latent_shape, generator=generator) if latents == "sample" else None
    drawn = measured.encode(many, noise).double()
    assert abs(float(drawn.mean())) < (0.01 if latents == "sample" else 1e-6)
    assert float(drawn.std(correction=0)) == pytest.approx(1, abs=0.01 if latents == "sample" else 1e-6)


def test_the_autoencoder_stays_in_float32_under_autocast() -> None:
    class Convolutions(torch.nn.Module):
        """Halves the sides and doubles them again."""

        def __init__(self) -> None:
            super().__init__()
            self.down = torch.nn.Conv2d(3, 3, 2, stride=2)
            self.up = torch.nn.ConvTranspose2d(3, 3, 2, stride=2)

        def encode(self, images: torch.Tensor) -> SimpleNamespace:
            mean = self.down(images)
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean.abs()))

        def decode(self, latents: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=self.up(latents))

    torch.manual_seed(0)
    codec = Codec(_averages_codec().config, Convolutions())
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    latents = codec.encode(images, None)
    decoded = codec.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(images, None), latents)
        assert torch.equal(codec.decode(latents), decoded)
        assert codec.decode(latents.bfloat16()).dtype == torch.float32


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"height is 9.*multiple of 2.*8 or 10"):
        open_codec(CodecConfig(patch_size=2), image_shape=(1, 9, 8))
    with pytest.raises(UserError, match=r"width is 3.*multiple of 4.*such as 4"):
        open_codec(CodecConfig(patch_size=4), image_shape=(1, 8, 3))
    codec = open_codec(CodecConfig(), image_shape=(3, 8, 8))
    with pytest.raises(UserError, match=r"\(1, 8, 8\).*\(3, 8, 8\)"):
        codec.encode_raw(torch.zeros(2, 1, 8, 8), None)
    with pytest.raises(UserError, match="do not vary"):
        measure_statistics(codec, [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(UserError, match="no images"):
        measure_statistics(codec, [])
