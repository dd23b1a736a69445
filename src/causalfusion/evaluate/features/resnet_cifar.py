"""A CIFAR ResNet as a feature space and as a neutral judge of the class of an image, with JPEG before it or
without."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

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
from causalfusion.evaluate.features.resnet_cifar_network import ResNetCifarNetwork


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
        self._model = load_resnet_cifar_network(path).to(device)
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


def load_resnet_cifar_network(path: str | Path) -> ResNetCifarNetwork:
    """The network in evaluation mode, from a safetensors file, which also tells its depth."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"judge {path} cannot be read ({error}); expected a safetensors file") from None
    blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in weights)
    classes = weights["linear.bias"].shape[0] if "linear.bias" in weights else 10
    model = ResNetCifarNetwork(max(blocks, 1), classes)
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
