"""An autoencoder of vision transformers whose latents have a deviation that is not learned.

The encoder gives the mean of each latent. In training, each image draws one number s from a normal
distribution, and the deviation of all its latents is |s| * `deviation`: the decoder learns to read latents
with errors of any size, and no latent's deviation can fall to zero (2412.08635, section 3.1).

Shape letters: B images, C image channels, H and W pixels, c latent channels, h and w latent pixels, L = h w
tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from causalfusion.codec.deterministic import Decoded, Encoded, Posterior

_INIT_STD = 0.02


class _Block(nn.Module):
    """A pre-norm transformer block; with `sub_norm`, LayerNorm also before the two output projections."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, sub_norm: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_norm = nn.LayerNorm(width, eps=eps) if sub_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, hidden)
        self.mlp_norm = nn.LayerNorm(hidden, eps=eps) if sub_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(self.norm1(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + self.proj(self.attention_norm(found))
        return hidden + self.fc2(self.mlp_norm(F.gelu(self.fc1(self.norm2(hidden)))))


class _VisionTransformer(nn.Module):
    """Patches, a class token and learned positions, blocks, a norm."""

    def __init__(
        self,
        channels: int,
        patch_size: int,
        num_patches: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        eps: float,
        sub_norm: bool,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, num_patches + 1, width))
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio, eps, sub_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        """Features of the patches, (B, L, D)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)[:, 1:]


class FixedVarianceAutoencoder(ModelMixin, ConfigMixin):
    """A latent pixel is a patch of the image. Folders are written and read as diffusers' own; the scale and
    the shift in them are for the reader's use, as there."""

    draws_deviation = True
    """The deviation of an image's latents is drawn for each image: see `Codec.draw_noise`."""

    @register_to_config
    def __init__(
        self,
        image_height: int = 32,
        image_width: int = 32,
        in_channels: int = 3,
        patch_size: int = 4,
        latent_channels: int = 16,
        deviation: float = 0.9375,
        encoder_width: int = 192,
        encoder_depth: int = 4,
        encoder_heads: int = 3,
        encoder_sub_norm: bool = False,
        encoder_eps: float = 1e-6,
        decoder_width: int = 192,
        decoder_depth: int = 4,
        decoder_heads: int = 3,
        mlp_ratio: float = 4.0,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = (image_height // patch_size, image_width // patch_size)
        self.patch_size, self.deviation = patch_size, deviation
        num_patches = self.grid[0] * self.grid[1]
        self.encoder = _VisionTransformer(
            in_channels,
            patch_size,
            num_patches,
            encoder_width,
            encoder_depth,
            encoder_heads,
            mlp_ratio,
            encoder_eps,
            encoder_sub_norm,
        )
        self.to_mean = nn.Linear(encoder_width, latent_channels)
        self.decoder = _VisionTransformer(
            latent_channels,
            1,
            num_patches,
            decoder_width,
            decoder_depth,
            decoder_heads,
            mlp_ratio,
            1e-6,
            False,
        )
        self.to_hidden = nn.Linear(decoder_width, decoder_width)
        self.to_pixels = nn.Linear(decoder_width, patch_size**2 * in_channels)

    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal weights; those that write to the residual stream in block l, from 1, are divided
        by sqrt(2 l)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for side in (self.encoder, self.decoder):
            for token in (side.class_token, side.positions):
                nn.init.trunc_normal_(token, std=_INIT_STD, generator=generator)
            for place, block in enumerate(side.blocks, 1):
                assert isinstance(block, _Block)
                for layer in (block.proj, block.fc2):
                    layer.weight.data.div_(math.sqrt(2 * place))

    def encode(self, x: Tensor, /) -> Encoded:
        """The posterior of the raw latents of images (B, C, H, W) in [-1, 1]. Its deviation is the root mean
        square of those that images draw."""
        features = self.to_mean(self.encoder(x))
        mean = features.transpose(1, 2).unflatten(2, self.grid)
        return Encoded(Posterior(mean, torch.full_like(mean, self.deviation)))

    def decode(self, z: Tensor, /) -> Decoded:
        """The images, (B, C, H, W), of raw latents (B, c, h, w)."""
        patches = self.to_pixels(torch.tanh(self.to_hidden(self.decoder(z))))
        (rows, columns), side = self.grid, self.patch_size
        cells = patches.unflatten(2, (-1, side, side)).unflatten(1, (rows, columns))
        return Decoded(cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))
