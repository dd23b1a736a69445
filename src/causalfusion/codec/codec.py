"""Pixels <-> raw latents <-> normalised latents <-> tokens, in one class that alone applies the scale.

Shape letters: B images, C image channels, H and W pixels, c latent channels, h and w latent pixels,
L tokens, P numbers in a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from causalfusion.codec.patches import patchify, unpatchify
from causalfusion.config import CodecConfig
from causalfusion.config.sizes import default_side, size_text
from causalfusion.errors import UserError
from causalfusion.machine.runtime import widest_float

_CHUNK = 32
"""Images that the autoencoder computes at once: its feature maps are far larger than the latents."""


class Autoencoder(Protocol):
    """The interface of an autoencoder, which diffusers' `AutoencoderKL` has. One whose `draws_deviation` is
    true has another deviation for every image, of which the posterior's is the root mean square."""

    def encode(self, x: Tensor, /) -> Any:
        """An object whose `latent_dist` has the `mean` and `std`, each (B, c, h, w), of the posterior of
        images (B, C, H, W) in [-1, 1]."""

    def decode(self, z: Tensor, /) -> Any:
        """An object whose `sample` has the images, (B, C, H, W), of raw latents (B, c, h, w)."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def to(self, device: torch.device, /) -> Any: ...


class Codec:
    """Encodes images to latents or tokens and back. `config` is complete: sizes, channels, scale and shift
    are those in use."""

    def __init__(
        self,
        config: CodecConfig,
        autoencoder: Autoencoder | None = None,
        only_size: tuple[int, int] | None = None,
    ) -> None:
        """`only_size`: (height, width) of the only images that the autoencoder takes."""
        self.config, self.autoencoder, self.only_size = config, autoencoder, only_size
        self.device = torch.device("cpu")

    @cached_property
    def autoencoder_fingerprint(self) -> str:
        """Hash of the autoencoder's weights, independent of its path; empty for pixels."""
        if self.autoencoder is None:
            return ""
        from causalfusion.codec.autoencoder import fingerprint

        return fingerprint(self.autoencoder)

    def to(self, device: torch.device | str) -> Codec:
        self.device = torch.device(device)
        if self.autoencoder is not None:
            self.autoencoder.to(self.device)
        return self

    def at(self, height: int, width: int) -> Codec:
        """This codec for images of another size. Raises UserError for one that patches do not cover, or that
        the autoencoder does not take."""
        if (height, width) == (self.config.image_height, self.config.image_width):
            return self
        config = replace(self.config, image_height=height, image_width=width)
        check_size(config)
        _check_image_size(config, self.only_size)
        return Codec(config, self.autoencoder, self.only_size).to(self.device)

    @property
    def cell(self) -> int:
        """Pixels along a side of a token."""
        return self.config.downsample * self.config.patch_size

    @property
    def grid_height(self) -> int:
        return self.config.image_height // self.cell

    @property
    def grid_width(self) -> int:
        return self.config.image_width // self.cell

    @property
    def num_tokens(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def token_dim(self) -> int:
        return self.config.patch_size**2 * self.config.latent_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of an image's latents, (c, h, w)."""
        down = self.config.downsample
        return (
            self.config.latent_channels,
            self.config.image_height // down,
            self.config.image_width // down,
        )

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of the raw latents, each (B, c, h, w), of images (B, C, H, W) in
        [-1, 1]; the deviation is None for pixels. Raises UserError for images of another size, or, where they
        may have any, of one that patches do not cover."""
        expected = (self.config.image_channels, self.config.image_height, self.config.image_width)
        if self.config.max_area:
            self.at(*images.shape[2:])
        elif images.shape[1:] != expected:
            raise UserError(f"images have shape {tuple(images.shape[1:])}; the model's are {expected}")
        if self.autoencoder is None:
            return images, None
        with torch.autocast(images.device.type, enabled=False):  # latents are always float32
            parts = [self.autoencoder.encode(p.float()).latent_dist for p in images.split(_CHUNK)]
            return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])

    def draw_noise(self, generator: torch.Generator) -> Tensor:
        """Noise to draw the raw latents of one image with, (c, h, w), of variance 1: standard normal, times
        one standard normal number where the autoencoder draws a deviation for each image."""
        noise = torch.randn(self.latent_shape, generator=generator)
        if getattr(self.autoencoder, "draws_deviation", False):
            noise *= torch.randn((), generator=generator)
        return noise

    @torch.no_grad()
    def encode_raw(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Raw latents of images (B, C, H, W) in [-1, 1]: drawn with `noise`, or the mode if it is None."""
        mean, std = self.moments(images)
        return mean if noise is None or std is None else mean + std * noise

    def encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Normalised latents, (B, c, h, w), of images; `noise` as in `encode_raw`."""
        return self.normalise(self.encode_raw(images, noise))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), clamped to [-1, 1], of normalised latents (B, c, h, w)."""
        raw = self.denormalise(latents)
        if self.autoencoder is not None:
            with torch.no_grad(), torch.autocast(raw.device.type, enabled=False):
                raw = self.autoencoder.decode(raw.float()).sample
        return raw.clamp(-1, 1)

    def normalise(self, raw: Tensor) -> Tensor:
        return (raw - self.config.shift) * self.config.scale

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / self.config.scale + self.config.shift

    def to_tokens(self, latents: Tensor) -> Tensor:
        """Tokens (B, L, P), in raster order, of latents (B, c, h, w)."""
        return patchify(latents, self.config.patch_size)

    def to_latents(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.grid_height, self.grid_width, self.config.patch_size)

    def channels_of_token(self) -> Tensor:
        """Latent channel of each number of a token, (P,) int64."""
        channels, height, width = self.latent_shape
        latents = torch.arange(channels)[:, None, None].expand(channels, height, width)
        return self.to_tokens(latents[None])[0, 0]

    def encode_tokens(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Tokens (B, L, P) of images of this codec's size; where images may have any, the codec `at` theirs
        has them, as tokens do not tell their places. Raises UserError."""
        own = (self.config.image_height, self.config.image_width)
        if self.config.max_area and images.shape[2:] != own:
            given = f"{images.shape[3]}x{images.shape[2]}"
            raise UserError(
                f"images have {given} pixels; expected {own[1]}x{own[0]}, or Pipeline.at their size"
            )
        return self.to_tokens(self.encode(images, noise))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.decode(self.to_latents(tokens))

    def to_uint8(self, images: Tensor) -> np.ndarray:
        """Images (B, H, W, C) uint8 of images (B, C, H, W) in [-1, 1]."""
        pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def with_statistics(self, mean: float, std: float) -> Codec:
        """This codec with the shift and scale that bring latents of this mean and standard deviation to 0 and
        1; its configuration holds them as given values."""
        config = replace(self.config, normalization="given", shift=mean, scale=1 / std)
        return Codec(config, self.autoencoder, self.only_size).to(self.device)


def open_codec(
    config: CodecConfig,
    *,
    image_shape: tuple[int, int, int] | None,
    latent_shape: tuple[int, int, int] | None = None,
) -> Codec:
    """The codec of these settings for images of `image_shape` (C, H, W), or of an autoencoder's
    `latent_shape` (c, h, w), or, if both are None, of the size in `config`, or of the default one of
    `max_area`. Raises UserError for images or latents that do not fit the autoencoder or the patch size."""
    if image_shape is not None:
        channels, height, width = image_shape
        config = replace(config, image_channels=channels, image_height=height, image_width=width)
    if config.kind == "pixels":
        config = replace(config, latent_channels=config.image_channels, downsample=1)
        autoencoder = only_size = None
    else:
        from causalfusion.codec.autoencoder import open_autoencoder

        opened = open_autoencoder(config.autoencoder)
        autoencoder, only_size = opened.network, opened.image_size
        place = Path(config.autoencoder).expanduser()
        if place.exists():  # stored as an absolute path, as models are used from other folders too
            config = replace(config, autoencoder=str(place.resolve()))
        if config.image_channels not in (0, opened.image_channels):
            raise UserError(
                f"the images have {config.image_channels} channels; the autoencoder "
                f"{config.autoencoder} takes {opened.image_channels}: give another codec.autoencoder, or none"
            )
        if latent_shape is not None:
            config = _with_latents(config, latent_shape, opened.latent_channels, opened.downsample)
        config = replace(
            config,
            latent_channels=opened.latent_channels,
            downsample=opened.downsample,
            image_channels=opened.image_channels,
        )
    if config.max_area:
        side = default_side(config.max_area, config.downsample * config.patch_size)
        config = replace(config, image_height=side, image_width=side)
    check_size(config)
    _check_image_size(config, only_size)
    return Codec(config, autoencoder, only_size)


def _with_latents(
    config: CodecConfig, shape: tuple[int, int, int], channels: int, downsample: int
) -> CodecConfig:
    """The settings for images with latents of this shape. Raises UserError unless the autoencoder has as many
    channels."""
    if shape[0] != channels:
        raise UserError(
            f"the latents have {shape[0]} channels, those of the autoencoder {config.autoencoder} have "
            f"{channels}; give the autoencoder that encoded them as codec.autoencoder"
        )
    return replace(config, image_height=shape[1] * downsample, image_width=shape[2] * downsample)


def _check_image_size(config: CodecConfig, only: tuple[int, int] | None) -> None:
    """Raises UserError for images of another size than the only one that the autoencoder takes."""
    height, width = config.image_height, config.image_width
    if only is not None and (config.max_area or only != (height, width)):
        given = "of any size" if config.max_area else size_text(height, width)
        raise UserError(
            f"the images are {given}; the autoencoder {config.autoencoder} takes {size_text(*only)} alone: "
            "change the size (data.image_size in training)"
        )


def check_size(config: CodecConfig) -> None:
    """Raises UserError unless a whole number of patches covers the image."""
    cell = config.downsample * config.patch_size
    for name, side in (("height", config.image_height), ("width", config.image_width)):
        if side < cell or side % cell:
            lower = side // cell * cell
            nearest = f"{lower} or {lower + cell}" if lower else str(cell)
            raise UserError(
                f"the image {name} is {side}; expected a multiple of {cell} (downsampling "
                f"{config.downsample} x patch size {config.patch_size}), such as {nearest}: change the size "
                "(data.image_size in training) or codec.patch_size"
            )


def measure_statistics(codec: Codec, batches: Iterable[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of the raw latents of image batches, accumulated in float64 where the
    device has it.

    For latents drawn from the posterior, those of the draws, exactly and without sampling them:
    Var = E[mean² + std²] - E[mean]². Raises UserError if there are no images or the latents do not vary.
    """
    count, total, squares = 0, 0.0, 0.0
    for images in batches:
        mean, std = codec.moments(images.to(codec.device))
        count += mean.numel()
        exact = widest_float(mean.device)
        total += float(mean.to(exact).sum())
        squares += float(mean.to(exact).square().sum())
        if std is not None and codec.config.latents == "sample":
            squares += float(std.to(exact).square().sum())
    if not count:
        raise UserError("there are no images to measure the latents' statistics on")
    center = total / count
    variance = squares / count - center**2
    if variance <= 1e-12:
        raise UserError(f"the latents do not vary (variance {variance:g}); their scale cannot be measured")
    return center, variance**0.5
