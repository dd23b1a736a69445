"""Perceptual distance: that of a frozen network's features.

At each of the network's layers the features of a place are scaled to length 1; the distance is the mean
squared difference of these vectors, averaged over places and layers (as in 1801.03924, without its learned
weights).

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causalfusion.autoencode.objective import Distance
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
    return perceptual_distance(_OPENERS[kind](value, device))


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


def _resnet_cifar(path: str, device: torch.device) -> FeatureMaps:
    from causalfusion.evaluate.features.resnet_cifar import load_resnet_cifar_network

    network = load_resnet_cifar_network(Path(path).expanduser()).to(device).requires_grad_(False)

    def maps(images: Tensor) -> list[Tensor]:
        pixels = (images.permute(0, 2, 3, 1) + 1) / 2
        hidden = ((pixels - network.pixel_mean) / network.pixel_std).permute(0, 3, 1, 2)
        found = [F.relu(network.bn1(network.conv1(hidden)))]
        for stage in (network.layer1, network.layer2, network.layer3):
            found.append(stage(found[-1]))
        return found

    return maps


def _transformers(model: str, device: torch.device) -> FeatureMaps:
    from causalfusion.evaluate.features.transformers import load_vision_model

    loaded, processor = load_vision_model(model)
    base: Any = loaded.base_model
    base = getattr(base, "vision_model", base).float().to(device).eval().requires_grad_(False)
    mean, std = (
        torch.tensor(getattr(processor, name, None) or [0.5] * 3, device=device)[:, None, None]
        for name in ("image_mean", "image_std")
    )
    side = _side_of(processor)

    def maps(images: Tensor) -> list[Tensor]:
        pixels = (images + 1) / 2
        if side and pixels.shape[2:] != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        hidden = base(pixel_values=(pixels - mean) / std, output_hidden_states=True).hidden_states
        # Rows of tokens (B, length, width), or maps (B, channels, h, w).
        return [each.transpose(1, 2) if each.ndim == 3 else each for each in hidden[1:]]

    return maps


def _side_of(processor: Any) -> int:
    """Side of the square images that a model takes; 0 if its image processor does not say."""
    said = processor.to_dict()
    for name in ("crop_size", "size"):
        size = dict(said.get(name) or {})
        for key in ("height", "shortest_edge"):
            if size.get(key):
                return int(size[key])
    return 0


_OPENERS: dict[str, Callable[[str, torch.device], FeatureMaps]] = {
    "resnet-cifar": _resnet_cifar,
    "transformers": _transformers,
}
