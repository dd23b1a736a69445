"""Where the latents of images of several sizes lie in a shard: a row of numbers, those of one size together.

Shape letters: n images of a shard, B images, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

import numpy as np


def stored_order(sizes: np.ndarray) -> np.ndarray:
    """(stored,) int64: a shard's images in the order in which they are stored: by size, then by index,
    without those of size 0. `sizes` (n, 2): latent height and width."""
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    return order[sizes[order, 0] > 0]


def num_values(sizes: np.ndarray, per_pixel: int) -> int:
    """Numbers in a shard; `per_pixel`: variants x moments x c."""
    return int(sizes.astype(np.int64).prod(1).sum()) * per_pixel


def gather(
    shard: np.ndarray, sizes: np.ndarray, shape: tuple[int, int, int], rows: np.ndarray, variants: np.ndarray
) -> np.ndarray:
    """The stored moments (B, moments, c, h, w) of these images of a shard, which have one size. `shape`:
    variants, moments and c of all images."""
    order = stored_order(sizes)
    height, width = sizes[rows[0]].tolist()
    same = (sizes[order] == sizes[rows[0]]).all(1)
    before, members = order[: same.argmax()], order[same]
    start = num_values(sizes[before], int(np.prod(shape)))
    block = shard[start : start + len(members) * int(np.prod(shape)) * height * width]
    place = np.searchsorted(members, rows)  # members are in the order of their indices
    return block.reshape(len(members), *shape, height, width)[place, variants]
