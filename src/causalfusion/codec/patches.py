"""Latents to tokens and back; one token is a square patch of latent pixels.

Shape letters: B images, C channels, h and w latent pixels, L tokens, P = patch² C numbers in a token.
"""

from __future__ import annotations

from torch import Tensor


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Tokens (B, L, P) of latents (B, C, h, w). Tokens are in raster order; inside a token pixels are in
    raster order and channels vary fastest. Raises ValueError if the patch size does not divide h and w."""
    batch, channels, height, width = latents.shape
    rows, columns = height // patch_size, width // patch_size
    if (rows * patch_size, columns * patch_size) != (height, width):
        raise ValueError(f"latents of {height}x{width} cannot be cut into patches of {patch_size}")
    cells = latents.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(tokens: Tensor, grid_height: int, grid_width: int, patch_size: int) -> Tensor:
    """Latents (B, C, h, w) of tokens (B, L, P), the inverse of `patchify`. Raises ValueError if the grid does
    not have L tokens."""
    batch, channels = tokens.shape[0], tokens.shape[2] // patch_size**2
    expected = (batch, grid_height * grid_width, channels * patch_size**2)
    if tokens.shape != expected:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; the grid makes it {expected}")
    cells = tokens.reshape(batch, grid_height, grid_width, patch_size, patch_size, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(
        batch, channels, grid_height * patch_size, grid_width * patch_size
    )
