"""Perceptual distance: that of a frozen network's features.

At each of the network's layers the features of a place are scaled to length 1; the distance is the mean
squared difference of these vectors, averaged over places and layers (as in 1801.03924, without its learned
weights).

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from causalfusion.autoencode.objective import Distance
from causalfusion.encoders.networks import Network, hugging_face, resnet_cifar
from causalfusion.errors import UserError

FeatureMaps = Callable[[Tensor], list[Tensor]]
"""Features (B, channels, ...) of RGB images (B, 3, H, W) in [-1, 1], for each layer."""
_EXPECTED = "expected resnet-cifar:FILE.safetensors or transformers:ID"
_EPS = 1e-8


def open_perceptual(name: str, device: torch.device) -> Distance:
    """The distance in the features of the network `name`. Raises UserError for an unknown or damaged one."""
    kind, _, value = name.partition(":")
    if not value or kind not in _OPENERS:
        raise UserError(f"perceptual is {name!r}; {_EXPECTED}")
    return perceptual_distance(_OPENERS[kind](value, device).layers)


def perceptual_distance(maps: FeatureMaps) -> Distance:
    """The distance in these features."""

    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = [_unit(features) for features in maps(_rgb(theirs))]
        moving = [_unit(features) for features in maps(_rgb(ours))]
        squares = [(a - b).square().sum(1).mean() for a, b in zip(moving, fixed, strict=True)]
        return torch.stack(squares).mean()

    return distance


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + _EPS).sqrt()


def _rgb(images: Tensor) -> Tensor:
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


_OPENERS: dict[str, Callable[[str, torch.device], Network]] = {
    "resnet-cifar": resnet_cifar,
    "transformers": hugging_face,
}
