"""The loss of an autoencoder: reconstruction, KL divergence, and perceptual distance.

Shape letters: B images, C, H, W channels and pixels, c, h, w those of latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from causalfusion.codec.codec import Codec
from causalfusion.config.autoencoding import AutoencoderConfig, ReconstructionConfig

Distance = Callable[[Tensor, Tensor], Tensor]
"""A differentiable distance, a scalar, between images (B, C, H, W) in [-1, 1] and others."""


@dataclass(frozen=True)
class Losses:
    """Scalars of a batch; `total` is the weighted sum of the others."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    perceptual: Tensor | None


class Objective:
    """The loss of a batch, given the noise that its latents are drawn with."""

    def __init__(
        self, network: AutoencoderConfig, training: ReconstructionConfig, perceptual: Distance | None
    ) -> None:
        self.is_fixed = network.kind == "fixed_variance"
        self.error = F.l1_loss if training.reconstruction == "l1" else F.mse_loss
        self.kl_weight, self.perceptual_weight = training.weight_of_kl(network), training.perceptual_weight
        self.perceptual = perceptual

    def __call__(self, codec: Codec, images: Tensor, noise: Tensor) -> Losses:
        """Losses of images (B, C, H, W) in [-1, 1]; `noise` (B, c, h, w) is that of `Codec.draw_noise`."""
        assert codec.autoencoder is not None
        posterior = codec.autoencoder.encode(images).latent_dist
        decoded = codec.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        reconstruction = self.error(decoded, images)
        kl = self.kl(posterior)
        total = reconstruction + self.kl_weight * kl
        perceptual = None if self.perceptual is None else self.perceptual(decoded, images)
        if perceptual is not None:
            total = total + self.perceptual_weight * perceptual
        return Losses(total, reconstruction, kl, perceptual)

    def kl(self, posterior: Any) -> Tensor:
        """KL divergence of the posterior from a standard normal distribution, per latent number; of a fixed
        deviation, the mean's square alone."""
        if self.is_fixed:
            return posterior.mean.square().mean()
        return 0.5 * (posterior.mean.square() + posterior.std.square() - 1 - posterior.logvar).mean()
