"""The CIFAR ResNet of He et al. (1512.03385), section 4.2, with parameter-free shortcuts (option A). Weights
have the names of akamaster/pytorch_resnet_cifar10.

Shape letters: B images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causalfusion.errors import UserError

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
_SPATIAL_MAPS = 4


@dataclass(frozen=True)
class ResNetCifarOutput:
    pool: Tensor
    """Mean of the 64 last maps over the image, (B, 64)."""
    spatial: Tensor
    """The first 4 of these maps, (8, 8, 4) flattened, (B, 256), as sFID takes the first 7 of Inception's."""
    logits: Tensor
    """Logits, (B, 10)."""


class ResNetCifarNetwork(nn.Module):
    """CIFAR ResNet of three stages; `blocks_per_stage` is 3 for ResNet-20 and 9 for ResNet-56."""

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
        """Features and logits of RGB images (B, 32, 32, 3) uint8."""
        pixels = images.to(self.pixel_mean.dtype) / 255
        hidden = ((pixels - self.pixel_mean) / self.pixel_std).permute(0, 3, 1, 2)
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        maps = self.layer3(self.layer2(self.layer1(hidden)))
        pool = maps.mean(dim=(2, 3))
        spatial = maps[:, :_SPATIAL_MAPS].permute(0, 2, 3, 1).flatten(1)
        return ResNetCifarOutput(pool, spatial, self.linear(pool))


def load_resnet_cifar_network(path: str | Path) -> ResNetCifarNetwork:
    """The network in evaluation mode, from a safetensors file; its depth follows from the weights. Raises
    UserError for a file that cannot be read or holds another network."""
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
