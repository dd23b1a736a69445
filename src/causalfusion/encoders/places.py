"""Features at the places of an image by a frozen encoder: what a model's tokens are aligned with.

| name | features |
|---|---|
| `transformers:ID` | the last layer's patches of a Hugging Face vision model, by id or folder |
| `resnet-cifar:FILE` | the last 64 maps, 8x8, of a CIFAR ResNet |
| `model:RUN[:LAYER]` | the tokens of a layer of a model of this package, clean |

Shape letters: B images, C, H, W channels and pixels, E features, h, w places, L tokens of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.config.serialize import to_dict
from causalfusion.encoders.networks import Network, hugging_face, resnet_cifar
from causalfusion.errors import UserError
from causalfusion.files import hash_of
from causalfusion.generate.features import layer_number, read_layers
from causalfusion.generate.levels import CLEAN, parse_place
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.layers import num_layers
from causalfusion.saved.folder import latest_model
from causalfusion.weight_files import hash_weights

NAMES = "transformers:ID (a folder or a hub id), resnet-cifar:FILE, or model:RUN[:LAYER]"


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder."""

    maps: Callable[[Tensor], Tensor]
    """Features (B, E, h, w) of images (B, C, H, W) in [-1, 1]."""
    width: int
    """E."""
    fingerprint: str
    """Hash of the weights, and of everything else that changes the numbers."""

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, E) float16, in raster order, of images (B, 1 or 3, H, W) in [-1, 1]: the mean over the
        places that a token of the grid covers, or, of coarser maps, an interpolation."""
        with torch.no_grad():
            maps = self.maps(images).float()
            if maps.shape[2:] != grid:
                finer = all(ours <= theirs for ours, theirs in zip(grid, maps.shape[2:], strict=True))
                pooled = F.adaptive_avg_pool2d(maps, grid) if finer else None
                maps = F.interpolate(maps, grid, mode="bilinear") if pooled is None else pooled
            return maps.flatten(2).transpose(1, 2).half()


def open_encoder(name: str, device: torch.device) -> Encoder:
    """The encoder of this name. Raises UserError for an unknown or damaged one, and for one that gives other
    features of the same image each time."""
    kind, _, value = name.partition(":")
    if not value or kind not in _OPENERS:
        raise UserError(f"align.encoder is {name!r}; expected {NAMES}")
    maps, facts = _OPENERS[kind](value, device)
    image = torch.linspace(-1, 1, 3 * 32 * 32, device=device).reshape(1, 3, 32, 32)
    with torch.no_grad():
        first, second = maps(image), maps(image)
    if first.ndim != 4 or not first.isfinite().all():
        raise UserError(f"align.encoder {name} gives no finite features at places; expected a vision model")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise UserError(
            f"align.encoder {name} gives other features of the same image each time; expected a model "
            "without masking or sampling"
        )
    return Encoder(maps, first.shape[1], hash_of(["places, 1", *facts]))


_Opened = tuple[Callable[[Tensor], Tensor], list[object]]


def _of_network(network: Network) -> _Opened:
    def maps(images: Tensor) -> Tensor:
        return network.last(_channels(images, 3))

    return maps, [*network.facts, hash_weights(network.weights)]


def _of_model(place: str, device: torch.device) -> _Opened:
    run, layer, level = parse_place(place)
    if level != CLEAN:
        raise UserError(f"align.encoder is 'model:{place}'; expected model:RUN[:LAYER], as images are clean")
    pipeline = Pipeline.load(latest_model(Path(run)), device=device)
    config, codec = pipeline.model.config, pipeline.codec
    number = layer_number(config, num_layers(config) // 2 if layer is None else layer)

    def maps(images: Tensor) -> Tensor:
        images = _channels(images, codec.config.image_channels)
        if images.shape[2:] != pipeline.image_size:
            images = F.interpolate(images, pipeline.image_size, mode="bilinear", antialias=True)
        found = read_layers(pipeline, codec.encode_tokens(images, None), [number])[number]
        return found.transpose(1, 2).unflatten(2, pipeline.grid)

    facts = ["model, 1", number, to_dict(pipeline.spec.model), to_dict(pipeline.spec.text)]
    facts += [hash_weights(pipeline.model.state_dict()), codec.autoencoder_fingerprint]
    return maps, facts


def _channels(images: Tensor, channels: int) -> Tensor:
    """The images in grey, or in three equal channels, where they have another number."""
    if images.shape[1] == channels:
        return images
    return images.mean(1, keepdim=True) if channels == 1 else images.expand(-1, channels, -1, -1)


_OPENERS: dict[str, Callable[[str, torch.device], _Opened]] = {
    "transformers": lambda value, device: _of_network(hugging_face(value, device)),
    "resnet-cifar": lambda value, device: _of_network(resnet_cifar(value, device)),
    "model": _of_model,
}
