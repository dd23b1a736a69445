"""The Inception-v3 of FID: TensorFlow's graph of 2015-12-05, with the weights' names of its PyTorch release.

Szegedy et al., 1512.00567. This graph differs from other Inception-v3s by 1008 classes, average pools that do
not count their padding, and a max pool in the last block. TensorFlow counts its mixed blocks from 0:
mixed, mixed_1, mixed_2 are Mixed_5b, 5c, 5d here, mixed_3 to mixed_7 are 6a to 6e, the last three 7a to 7c.

Shape letters: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
NUM_CLASSES = 1008
_SPATIAL_CHANNELS = 7
_BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class InceptionOutput:
    pool: Tensor
    """Pooled features, (B, 2048): TensorFlow's `pool_3:0`."""
    spatial: Tensor
    """Spatial features, (B, 2023): channels 0..6 of `mixed_6/conv:0`, (17, 17, 7) flattened, as in ADM's
    sFID.

    `mixed_6` is Mixed_6d, and `mixed_6/conv` its 1x1 branch after batch normalization and ReLU. In this graph
    the convolution itself is `mixed_6/conv/Conv2D`, its normalization `mixed_6/conv/batchnorm`; the plain
    name of the scope belongs to the ReLU, as in `conv` .. `conv_4`.
    """
    logits: Tensor
    """Logits without bias, (B, 1008): ADM and OpenAI's Inception Score multiply `pool_3` by the weights of
    `softmax/logits/MatMul` and leave out the bias, `fc.bias`."""


class Conv(nn.Module):
    """Convolution without bias, batch normalization, ReLU. With `same` the size stays."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1, same: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(hidden)))


def _average_pool(hidden: Tensor) -> Tensor:
    """Mean over 3x3 pixels, as large as the input; at the border over the pixels within the image."""
    return F.avg_pool2d(hidden, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """Block at 35x35: branches with 1x1, 5x5 and two 3x3 convolutions, and a pool."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, same=True)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, same=True)
        self.branch_pool = Conv(inputs, pool, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(hidden))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(hidden)))
        pooled = self.branch_pool(_average_pool(hidden))
        return torch.cat([self.branch1x1(hidden), five, three, pooled], dim=1)


class BlockB(nn.Module):
    """Block from 35x35 to 17x17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(hidden)))
        return torch.cat([self.branch3x3(hidden), double, F.max_pool2d(hidden, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """Block at 17x17: 7x7 convolutions factorized into 1x7 and 7x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, width, 1)
        self.branch7x7_2 = Conv(width, width, (1, 7), same=True)
        self.branch7x7_3 = Conv(width, 192, (7, 1), same=True)
        self.branch7x7dbl_1 = Conv(768, width, 1)
        self.branch7x7dbl_2 = Conv(width, width, (7, 1), same=True)
        self.branch7x7dbl_3 = Conv(width, width, (1, 7), same=True)
        self.branch7x7dbl_4 = Conv(width, width, (7, 1), same=True)
        self.branch7x7dbl_5 = Conv(width, 192, (1, 7), same=True)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(hidden)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(hidden)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        pooled = self.branch_pool(_average_pool(hidden))
        return torch.cat([self.branch1x1(hidden), seven, double, pooled], dim=1)


class BlockD(nn.Module):
    """Block from 17x17 to 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(hidden))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(hidden)))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(hidden, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """Block at 8x8: branches that end in a 1x3 and a 3x1 convolution side by side."""

    def __init__(self, inputs: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), same=True)
        self.branch3x3_2b = Conv(384, 384, (3, 1), same=True)
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, same=True)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), same=True)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), same=True)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        three = self.branch3x3_1(hidden)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(hidden))
        pooled = F.max_pool2d(hidden, 3, stride=1, padding=1) if self.max_pool else _average_pool(hidden)
        parts = [
            self.branch1x1(hidden),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(parts, dim=1)


class InceptionNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = BlockA(192, pool=32)
        self.Mixed_5c = BlockA(256, pool=64)
        self.Mixed_5d = BlockA(288, pool=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, max_pool=False)
        self.Mixed_7c = BlockE(2048, max_pool=True)
        self.fc = nn.Linear(2048, NUM_CLASSES)

    def forward(self, pixels: Tensor) -> InceptionOutput:
        """Features and logits of pixels (B, 3, 299, 299) in about [-1, 1], as `preprocess` makes them."""
        hidden = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        hidden = self.Conv2d_3b_1x1(F.max_pool2d(hidden, 3, stride=2))
        hidden = F.max_pool2d(self.Conv2d_4a_3x3(hidden), 3, stride=2)
        hidden = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(hidden)))
        hidden = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(hidden)))
        branch = self.Mixed_6d.branch1x1(hidden)[:, :_SPATIAL_CHANNELS]
        hidden = self.Mixed_6e(self.Mixed_6d(hidden))
        hidden = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(hidden)))
        pool = hidden.mean(dim=(2, 3))
        spatial = branch.permute(0, 2, 3, 1).flatten(1)  # TensorFlow's order: channels last
        return InceptionOutput(pool, spatial, F.linear(pool, self.fc.weight))


def resize_bilinear_legacy(images: Tensor, height: int, width: int) -> Tensor:
    """Float images (B, C, H, W) resized as by TensorFlow 1's `resize_bilinear` with align_corners=False:
    output row i is at input row i * H / height, without half-pixel centres. Float32, as in TensorFlow."""
    low, high, weight = _taps(images.shape[3], width, images.device)
    left, right = images[..., low], images[..., high]
    wide = left + (right - left) * weight
    low, high, weight = _taps(images.shape[2], height, images.device)
    top, bottom = wide[:, :, low], wide[:, :, high]
    return top + (bottom - top) * weight[:, None]


def _taps(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two old pixels that each new one lies between, and the weight of the second; each (new_size,)."""
    scale = torch.tensor(size, dtype=torch.float32) / torch.tensor(new_size, dtype=torch.float32)
    place = torch.arange(new_size, dtype=torch.float32) * scale
    low = place.floor()
    high = (low + 1).clamp(max=size - 1)
    return low.long().to(device), high.long().to(device), (place - low).to(device)


def preprocess(images: Tensor) -> Tensor:
    """Input of the network, (B, 3, 299, 299) float32, from RGB images (B, H, W, 3) uint8."""
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)
    return (resize_bilinear_legacy(pixels, SIDE, SIDE) - 128) / 128
