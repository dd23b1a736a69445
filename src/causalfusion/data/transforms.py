"""Cropping images to the square that a model is trained on, and mirroring them at random."""

from __future__ import annotations

import numpy as np

from causalfusion.rng import derive_seed

_MAX_SCALED = 2**24
"""Most pixels that a long, narrow image may have after scaling, before it is cropped."""


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square, (size, size, C) uint8, as in ADM: box-halve the image while both sides are at least
    twice `size`, scale the shorter side to `size` (bicubic), crop the centre."""
    from PIL import Image

    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    shorter, longer = sorted((height, width))
    longest = int(shorter * max(_MAX_SCALED / size**2, 16))
    if longer > longest:  # scaling the ends, which are cropped anyway, would take gigabytes
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
    """True if this image is mirrored in this epoch, with probability 1/2, from (seed, epoch, index) alone."""
    return bool(derive_seed(seed, "flip", epoch, index) & 1)
