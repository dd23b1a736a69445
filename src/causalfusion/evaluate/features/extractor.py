"""What turns images into numbers that can be compared: the protocol, and what all extractors share.

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

Images = NDArray[np.uint8]
"""(B, H, W, C), C 1 (grey) or 3 (RGB)."""


@dataclass(frozen=True)
class Features:
    pool: NDArray[np.float32]
    """(B, D): what Fréchet and kernel distances, precision and recall compare."""
    spatial: NDArray[np.float32] | None = None
    """(B, D'), flattened: the same at places of the image, for the spatial Fréchet distance."""
    logits: NDArray[np.float32] | None = None
    """(B, K): their softmax gives class probabilities."""


class Extractor(Protocol):
    """One feature space. The caller cuts sets into batches; row i depends on image i alone (to rounding)."""

    @property
    def name(self) -> str:
        """As cards and file names say it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the weights and all else that changes the numbers: features compare only where it is equal."""
        ...

    @property
    def image_size(self) -> int | None:
        """Side of the images that it takes; None: any."""
        ...

    def __call__(self, images: Images, /) -> Features:
        """Features of images (B, H, W, C). Raises UserError for images that are not such."""
        ...


def check_images(images: Images, name: str, image_size: int | None = None) -> None:
    """Refuse what the extractor `name` cannot take: each extractor calls this first."""
    side = ("H", "W") if image_size is None else (str(image_size),) * 2
    shape = f"(B, {side[0]}, {side[1]}, 1 or 3)"
    found = f"{getattr(images, 'dtype', type(images).__name__)} of shape {np.shape(images)}"
    ok = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.size > 0
    ok = ok and images.shape[3] in (1, 3)
    if not ok or (image_size is not None and images.shape[1:3] != (image_size, image_size)):
        raise UserError(f"features {name}: the images are {found}; expected uint8 of shape {shape}, B > 0")


def as_rgb(images: Images) -> Images:
    """(B, H, W, 3): grey images with their channel three times."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that the names, shapes and bytes of all weights decide, in whatever file they came."""
    import hashlib

    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of(preprocessing: str, weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of the weights and of the name of what is done to images before them."""
    return hash_of([preprocessing, hash_weights(weights)])


@contextmanager
def exact_inference() -> Iterator[None]:
    """No gradients; float32 convolutions in float32 on a GPU too (cuDNN's default is TF32: 10 bits)."""
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False
        ),
    ):
        yield


def to_array(values: Tensor) -> NDArray[np.float32]:
    return values.detach().float().cpu().numpy()
