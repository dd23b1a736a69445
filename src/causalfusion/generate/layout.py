"""Which token stands where: orders of generation, raster order, masks of pixels, batches of images.

Shape letters: B images, L image tokens, P token dimension, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.factorization import draw_order
from causalfusion.rng import derive_generator


def draw_orders(
    config: SampleConfig, grid_height: int, grid_width: int, seed: int, image_indices: Sequence[int]
) -> Tensor:
    """(B, L): each image's order of generation, a function of (seed, image index). Raises UserError where
    there is no image."""
    if not image_indices:
        raise UserError("no image is asked for; expected at least one label, prompt or image")
    grid = (grid_height, grid_width)
    generators = [derive_generator(seed, "order", index) for index in image_indices]
    return torch.stack(
        [draw_order(config.order, *grid, config.block_size, g, config.given_order) for g in generators]
    )


def to_raster(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens (B, L, P) in order `order` (B, L) back to raster order."""
    return torch.zeros_like(tokens).scatter_(1, order[:, :, None].expand_as(tokens), tokens)


def tokens_of_mask(mask: Tensor, grid_height: int, grid_width: int) -> Tensor:
    """(grid_height, grid_width) bool: tokens with any masked pixel, of a pixel mask (H, W)."""
    height, width = mask.shape
    if height % grid_height or width % grid_width:
        raise UserError(
            f"the mask has {width}x{height} pixels; expected a multiple of the {grid_width}x{grid_height} "
            "token grid: give a mask of the image's size"
        )
    cells = mask.view(grid_height, height // grid_height, grid_width, width // grid_width)
    return cells.any(dim=3).any(dim=1)


def batches_of(
    total: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[range]:
    """Image indices first..first+total-1 in batches; process `rank` takes every world_size-th batch."""
    starts = range(first, first + total, batch_size)
    for start in starts[rank::world_size]:
        yield range(start, min(start + batch_size, first + total))
