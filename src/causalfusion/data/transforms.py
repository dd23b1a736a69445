"""From an image of any size to the square a model is trained on, and whether it is mirrored."""

from __future__ import annotations

import numpy as np

from causalfusion.rng import derive_seed

_MAX_SCALED = 2**24
"""Pixels of a strip, scaled but not yet cropped."""


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size, C) uint8 as in ADM: halve by boxes while both sides are twice too large, scale the
    shorter side to `size` (bicubic), cut out the middle."""
    from PIL import Image

    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    shorter, longer = sorted((height, width))
    longest = int(shorter * max(_MAX_SCALED / size**2, 16))
    if longer > longest:  # what lies beside the middle would take gigabytes to scale
        top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
        image = np.ascontiguousarray(image[top : height - top, left : width - left])
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    scaled = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].reshape(size, size, channels)


def flip_decision(seed: int, epoch: int, index: int) -> bool:
    """Whether this image is mirrored in this epoch: a coin that depends on nothing else."""
    return bool(derive_seed(seed, "flip", epoch, index) & 1)
