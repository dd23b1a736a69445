"""Cropping and scaling images to the size that a model is trained on, and mirroring them at random."""

from __future__ import annotations

import numpy as np

from causalfusion.config.sizes import Fit
from causalfusion.rng import derive_seed

_MAX_SCALED = 2**24
"""Most pixels that a long, narrow image may have after scaling, before it is cropped."""


def fit_image(image: np.ndarray, fit: Fit) -> np.ndarray | None:
    """An image (H, W, C) uint8 brought to size; None for one that is smaller than a token."""
    size = fit.size_of(*image.shape[:2])
    if size is None:
        return None
    if fit.max_area and fit.max_area >= image.shape[0] * image.shape[1]:
        return _middle(image, *size)  # a small one stays as it is
    return crop_to(image, *size)


def crop_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre, (height, width, C) uint8: box-halve the image while both sides are at least twice those,
    scale it to cover them (bicubic), crop (ADM, for squares)."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    channels = image.shape[2]
    image = _without_ends(image, height, width)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    scaled = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC))
    return _middle(pixels, height, width).reshape(height, width, channels)


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _without_ends(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A long, narrow image without its ends, which are cropped anyway: scaling them would take gigabytes."""
    rows, columns = image.shape[:2]
    most = max(_MAX_SCALED / (height * width), 16)
    # As long as this, an image covers the other side `most` times.
    tallest, widest = int(columns * height / width * most), int(rows * width / height * most)
    if rows <= tallest and columns <= widest:
        return image
    top, left = max(rows - tallest, 0) // 2, max(columns - widest, 0) // 2
    return np.ascontiguousarray(image[top : rows - top, left : columns - left])


def flip_decision(seed: int, epoch: int, index: int) -> bool:
    """True if this image is mirrored in this epoch, with probability 1/2, from (seed, epoch, index) alone."""
    return bool(derive_seed(seed, "flip", epoch, index) & 1)
