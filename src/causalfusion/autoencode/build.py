"""A new autoencoder from its settings, with random weights, in the codec that uses it."""

from __future__ import annotations

from typing import Any

import torch

from causalfusion.codec.codec import Codec
from causalfusion.config import CodecConfig
from causalfusion.config.autoencoding import GROUP_CHANNELS, NORM_GROUPS, AutoencoderConfig
from causalfusion.errors import UserError
from causalfusion.rng import derive_generator, derive_seed


def build_codec(config: AutoencoderConfig, image_shape: tuple[int, int, int], seed: int) -> Codec:
    """The codec of a new autoencoder for images of this shape (C, H, W); the weights depend on the seed
    alone. Raises UserError for images that the downsampling does not divide."""
    config = config.complete()
    channels, height, width = image_shape
    for name, side in (("height", height), ("width", width)):
        if side % config.downsample:
            lower = side // config.downsample * config.downsample
            nearest = f"{lower} or {lower + config.downsample}" if lower else str(config.downsample)
            raise UserError(
                f"the image {name} is {side}; expected a multiple of --downsample {config.downsample}, such "
                f"as {nearest}: change --downsample or --data.image-size"
            )
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        torch.manual_seed(derive_seed(seed, "autoencoder"))
        if config.kind == "kl":
            network = _convolutional(config, channels)
        else:
            network = _fixed_variance(config, image_shape, seed)
    codec = CodecConfig(
        autoencoder="(in training)",
        image_height=height,
        image_width=width,
        image_channels=channels,
        latent_channels=config.latent_channels,
        downsample=config.downsample,
    )
    return Codec(codec, network)


def _convolutional(config: AutoencoderConfig, channels: int) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    widths = [config.width * min(2**level, 4) for level in range(config.levels)]
    down: Any = ("DownEncoderBlock2D",) * config.levels  # diffusers' types allow only one
    up: Any = ("UpDecoderBlock2D",) * config.levels
    # Of one channel each, groups would take the mean of every channel away, and with it the colours.
    most = max(min(NORM_GROUPS, config.width // GROUP_CHANNELS), 1)
    groups = next(n for n in range(most, 0, -1) if config.width % n == 0)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=config.latent_channels,
        block_out_channels=tuple(widths),
        layers_per_block=config.depth,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=groups,
    )


def _fixed_variance(config: AutoencoderConfig, image_shape: tuple[int, int, int], seed: int) -> Any:
    from causalfusion.codec.fixed_variance import FixedVarianceAutoencoder

    channels, height, width = image_shape
    if config.width % config.heads:
        raise UserError(f"heads is {config.heads}; expected a divisor of the width {config.width}")
    network = FixedVarianceAutoencoder(
        image_height=height,
        image_width=width,
        in_channels=channels,
        patch_size=config.downsample,
        latent_channels=config.latent_channels,
        deviation=config.deviation,
        encoder_width=config.width,
        encoder_depth=config.depth,
        encoder_heads=config.heads,
        decoder_width=config.width,
        decoder_depth=config.depth,
        decoder_heads=config.heads,
    )
    network.init_weights(derive_generator(seed, "autoencoder"))
    return network
