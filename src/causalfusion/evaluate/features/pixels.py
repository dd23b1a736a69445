"""Pixels as features: images averaged down to a small size. There are no weights.

Shape letters: B images, H, W, C pixels and channels, S the side of the small images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Features, Images, check_images
from causalfusion.files import hash_of


def area_weights(size: int, side: int) -> NDArray[np.float64]:
    """Weights that average `size` pixels down to `side` pixels, (side, size); each row sums to 1."""
    edges = np.arange(side + 1) * (size / side)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0) * (side / size)


class PixelsExtractor:
    """Pool: small images (S, S, C), flattened, in [-1, 1]. Averages are exact for any side."""

    image_size = None

    def __init__(self, side: int = 8) -> None:
        self.side = side
        self.name = f"pixels:{side}"
        self.fingerprint = hash_of(["area average to [-1, 1]", side])

    def __call__(self, images: Images, /) -> Features:
        check_images(images, self.name)
        height, width = images.shape[1:3]
        if min(height, width) < self.side:
            raise UserError(
                f"features {self.name}: the images are {height}x{width}; expected at least "
                f"{self.side}x{self.side}: choose pixels:{min(height, width)}"
            )
        rows, columns = area_weights(height, self.side), area_weights(width, self.side)
        small = np.einsum("sh,bhwc,tw->bstc", rows, images.astype(np.float64), columns, optimize=True)
        return Features((small / 127.5 - 1).reshape(len(images), -1).astype(np.float32))
