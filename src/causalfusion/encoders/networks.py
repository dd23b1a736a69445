"""Frozen networks that read images: features of every layer, and maps of the last one.

Shape letters: B images, C, H, W channels and pixels, E features, h, w places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Network:
    """A network that takes RGB images (B, 3, H, W) in [-1, 1]."""

    layers: Callable[[Tensor], list[Tensor]]
    """Features (B, E, ...) of each layer."""
    last: Callable[[Tensor], Tensor]
    """Features (B, E, h, w) of the last layer, behind its final norm, where it has one."""
    facts: tuple[object, ...]
    """All that decides the numbers, but for the weights."""
    weights: Mapping[str, Tensor]


def resnet_cifar(path: str, device: torch.device) -> Network:
    """A CIFAR ResNet, from its file."""
    from causalfusion.encoders.resnet_cifar import load_resnet_cifar_network

    network = load_resnet_cifar_network(Path(path).expanduser()).to(device).requires_grad_(False)

    def layers(images: Tensor) -> list[Tensor]:
        pixels = (images.permute(0, 2, 3, 1) + 1) / 2
        hidden = ((pixels - network.pixel_mean) / network.pixel_std).permute(0, 3, 1, 2)
        found = [F.relu(network.bn1(network.conv1(hidden)))]
        for stage in (network.layer1, network.layer2, network.layer3):
            found.append(stage(found[-1]))
        return found

    def last(images: Tensor) -> Tensor:
        return layers(_resized(images, 32))[-1]

    return Network(layers, last, ("resnet-cifar, 1",), network.state_dict())


def hugging_face(model: str, device: torch.device) -> Network:
    """A vision model of `transformers`, by id or folder."""
    from causalfusion.encoders.hugging_face import load_vision_model

    loaded, processor = load_vision_model(model)
    base: Any = loaded.base_model
    base = getattr(base, "vision_model", base).float().to(device).eval().requires_grad_(False)
    numbers = [getattr(processor, name, None) or [0.5] * 3 for name in ("image_mean", "image_std")]
    mean, std = (torch.tensor(number, device=device)[:, None, None] for number in numbers)
    side, patch = _side_of(processor), getattr(base.config, "patch_size", None)

    def run(images: Tensor) -> Any:
        pixels = (_resized(images, side) + 1) / 2
        return base(pixel_values=(pixels - mean) / std, output_hidden_states=True)

    def layers(images: Tensor) -> list[Tensor]:
        # Rows of tokens (B, length, width), or maps (B, channels, h, w).
        return [each.transpose(1, 2) if each.ndim == 3 else each for each in run(images).hidden_states[1:]]

    def last(images: Tensor) -> Tensor:
        return _map_of(run(images).last_hidden_state, side or images.shape[2], patch)

    return Network(layers, last, ("transformers, 1", type(base).__name__, *numbers, side), base.state_dict())


def _resized(images: Tensor, side: int) -> Tensor:
    if not side or images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _map_of(hidden: Tensor, side: int, patch: Any) -> Tensor:
    """(B, E, h, w) of what a model gives for square images: a map, or tokens, of which those of a class and
    registers stand before the patches."""
    if hidden.ndim == 4:
        return hidden
    rows = side // patch if isinstance(patch, int) else 0
    if not 0 < rows * rows <= hidden.shape[1]:  # patches are merged on the way
        rows = isqrt(hidden.shape[1])
    return hidden[:, -rows * rows :].transpose(1, 2).unflatten(2, (rows, rows))


def _side_of(processor: Any) -> int:
    """Side of the square images that a model takes; 0 if its image processor does not say."""
    said = processor.to_dict()
    for name in ("crop_size", "size"):
        size = dict(said.get(name) or {})
        for key in ("height", "shortest_edge"):
            if size.get(key):
                return int(size[key])
    return 0
