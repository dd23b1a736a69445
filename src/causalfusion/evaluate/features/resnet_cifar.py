"""CIFAR-10 ResNets as a neutral judge of samples: their class, and features for a Fréchet distance.

The architecture is that of He et al. (1512.03385) section 4.2, with parameter-free shortcuts (option A);
the weights are a safetensors file of akamaster/pytorch_resnet_cifar10's names. They are meant to judge images
that went through JPEG, as their reference images did: use `jpeg_round_trip` on samples first.

As a feature space: `ResNetCifarExtractor`, which says where JPEG belongs.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import (
    Features,
    Images,
    as_rgb,
    check_images,
    exact_inference,
    fingerprint_of,
    to_array,
)

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
_SPATIAL_MAPS = 4


class ResNetCifarOutput(NamedTuple):
    pool: Tensor
    """(B, 64)."""
    spatial: Tensor
    """(B, 256): the first 4 of the 64 maps that are averaged to the pool, (8, 8, 4) flattened."""
    logits: Tensor
    """(B, 10)."""


class ResNetCifar(nn.Module):
    """`blocks_per_stage` is 3 for ResNet-20 and 9 for ResNet-56."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, blocks_per_stage: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks_per_stage)
        self.layer2 = _stage(16, 32, blocks_per_stage)
        self.layer3 = _stage(32, 64, blocks_per_stage)
        self.linear = nn.Linear(64, num_classes)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD), persistent=False)

    def forward(self, images: Tensor) -> ResNetCifarOutput:
        """Features and logits of images (B, 32, 32, 3) uint8."""
        pixels = images.to(self.pixel_mean.dtype) / 255
        hidden = ((pixels - self.pixel_mean) / self.pixel_std).permute(0, 3, 1, 2)
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        maps = self.layer3(self.layer2(self.layer1(hidden)))
        pool = maps.mean(dim=(2, 3))
        spatial = maps[:, :_SPATIAL_MAPS].permute(0, 2, 3, 1).flatten(1)
        return ResNetCifarOutput(pool, spatial, self.linear(pool))


class _Block(nn.Module):
    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.stride = width // in_width
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_padding = (width - in_width) // 2

    def forward(self, hidden: Tensor) -> Tensor:
        shortcut = hidden[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.shortcut_padding, self.shortcut_padding))
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


def _stage(in_width: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(in_width, width), *(_Block(width, width) for _ in range(blocks - 1)))


def load_resnet_cifar(path: str | Path) -> ResNetCifar:
    """The judge of a safetensors file, in evaluation mode; its depth follows from the file."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"judge {path} cannot be read ({error}); expected a safetensors file") from None
    blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in weights)
    classes = weights["linear.bias"].shape[0] if "linear.bias" in weights else 10
    model = ResNetCifar(max(blocks, 1), classes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise UserError(f"judge {path} is not a CIFAR ResNet of this architecture: {what}") from None
    return model.eval()


def jpeg_round_trip(images: Images) -> Images:
    """What is left of images (N, H, W, 3) after JPEG at quality 75 with 4:2:0 chroma, as in data/cifar10."""
    decoded = np.empty_like(images)
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=75, subsampling=2)
        decoded[index] = np.asarray(Image.open(buffer).convert("RGB"))
    return decoded


class ResNetCifarExtractor:
    """Pool (64), spatial (256) and logits (10) of a CIFAR ResNet, for 32x32 images. Spatial are the first 4
    of the 64 maps that are averaged to the pool, 8x8 each, as sFID takes the first 7 of Inception's.

    `resnet-cifar` takes images as they are: for data that never were JPEG. Where the reference was decoded
    from JPEG, it carries the codec's traces, and a generator of fresh pixels would be judged by them. There,
    `resnet-cifar-jpeg` sends all images through `jpeg_round_trip`, samples AND reference, whatever they went
    through before: both sides alike, so that equal distributions keep the distance 0. A second pass changes
    little: the 10,000 test images of data/cifar10 are 0.0004 away from themselves passed once more (two
    halves of them are 0.05 apart; ResNet-20), and their class accuracy is 80.8 % in place of 81.0 %. The two
    are different feature spaces with different fingerprints, and do not compare.
    """

    image_size = 32

    def __init__(self, path: Path, device: str = "cpu", *, jpeg: bool = False) -> None:
        self._model = load_resnet_cifar(path).to(device)
        self._jpeg = jpeg
        self.name = f"resnet-cifar{'-jpeg' if jpeg else ''}:{path.stem}"
        preprocessing = "RGB, JPEG quality 75 4:2:0" if jpeg else "RGB"
        self.fingerprint = fingerprint_of(preprocessing, self._model.state_dict())

    def __call__(self, images: Images, /) -> Features:
        check_images(images, self.name, self.image_size)
        images = as_rgb(images)
        if self._jpeg:
            images = jpeg_round_trip(images)
        with exact_inference():
            output = self._model(torch.from_numpy(images).to(self._model.pixel_mean.device))
        return Features(to_array(output.pool), to_array(output.spatial), to_array(output.logits))
