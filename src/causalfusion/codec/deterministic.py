"""Autoencoders without a posterior: one latent per image, in the form that the codec takes.

Shape letters: B images, C image channels, H and W pixels, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Posterior:
    """A normal distribution of raw latents."""

    mean: Tensor
    """(B, c, h, w)."""
    std: Tensor
    """(B, c, h, w)."""


@dataclass(frozen=True)
class Encoded:
    latent_dist: Posterior


@dataclass(frozen=True)
class Decoded:
    sample: Tensor
    """(B, C, H, W)."""


class DeterministicAutoencoder(nn.Module):
    """One of diffusers' autoencoders whose `encode` returns a latent. Its posterior has a deviation of 0.

    `low` and `high`: pixel values that the network takes for black and white; the codec's are -1 and 1.
    """

    def __init__(self, network: Any, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.half_range, self.middle = (high - low) / 2, (high + low) / 2

    def encode(self, images: Tensor) -> Encoded:
        """The latents of images (B, C, H, W) in [-1, 1]."""
        latent = self.network.encode(images * self.half_range + self.middle).latent
        return Encoded(Posterior(latent, torch.zeros_like(latent)))

    def decode(self, latents: Tensor) -> Decoded:
        """The images, (B, C, H, W), -1 black and 1 white, of raw latents (B, c, h, w)."""
        return Decoded((self.network.decode(latents).sample - self.middle) / self.half_range)

    def save_pretrained(self, folder: Path) -> None:
        """Write the network as a diffusers folder."""
        self.network.save_pretrained(folder)
