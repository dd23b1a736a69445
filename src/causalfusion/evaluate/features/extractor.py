"""Extractors turn images into features, numbers that can be compared: their protocol and shared helpers.

Shape letters: B images, H, W, C pixels and channels, D features, K classes. Images are uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.files import hash_of
from causalfusion.weight_files import hash_weights

Images = NDArray[np.uint8]
"""(B, H, W, C), C 1 (grey) or 3 (RGB)."""


@dataclass(frozen=True)
class Features:
    pool: NDArray[np.float32]
    """Pooled features, (B, D): for Fréchet and kernel distances, precision and recall."""
    spatial: NDArray[np.float32] | None = None
    """Features at places of the image, flattened, (B, D'), for the spatial Fréchet distance; may be None."""
    logits: NDArray[np.float32] | None = None
    """Logits, (B, K), whose softmax gives class probabilities. None: the extractor has no classes."""


class Extractor(Protocol):
    """One feature space. Row i of a batch's features depends on image i alone, up to rounding."""

    @property
    def name(self) -> str:
        """Name on cards and in messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and of everything else that changes the numbers. Only features with equal
        fingerprints can be compared."""
        ...

    @property
    def image_size(self) -> int | None:
        """Side of the images that the extractor accepts, in pixels; None: any size."""
        ...

    def __call__(self, images: Images, /) -> Features:
        """Features of images (B, H, W, C) uint8. Raises UserError for images of another shape or type."""
        ...


def check_images(images: Images, name: str, image_size: int | None = None) -> None:
    """Raises UserError for images that the extractor `name` does not accept. Every extractor calls this."""
    side = ("H", "W") if image_size is None else (str(image_size),) * 2
    shape = f"(B, {side[0]}, {side[1]}, 1 or 3)"
    found = f"{getattr(images, 'dtype', type(images).__name__)} of shape {np.shape(images)}"
    ok = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.size > 0
    ok = ok and images.shape[3] in (1, 3)
    if not ok or (image_size is not None and images.shape[1:3] != (image_size, image_size)):
        raise UserError(f"features {name}: the images are {found}; expected uint8 of shape {shape}, B > 0")


def as_rgb(images: Images) -> Images:
    """RGB images (B, H, W, 3); grey images get three equal channels."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def fingerprint_of(preprocessing: str, weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that the weights and the description of the preprocessing decide."""
    return hash_of([preprocessing, hash_weights(weights)])


@contextmanager
def exact_inference() -> Iterator[None]:
    """Inference without gradients, deterministic, with float32 convolutions in float32 on a GPU too (cuDNN's
    default, TF32, has 10 bits of mantissa)."""
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False
        ),
    ):
        yield


def to_array(values: Tensor) -> NDArray[np.float32]:
    """A tensor on any device as a float32 array."""
    return values.detach().float().cpu().numpy()
