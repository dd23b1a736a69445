"""Positions of image tokens from their coordinates: tables of sines, learned tables, rotary embedding.

Frequencies on grids larger than that of training follow FiTv2 (2410.13925, section 3): linear interpolation,
NTK-aware, by parts, YaRN, and NTK with attention scaled by the number of tokens.

Shape letters: B images, n tokens, L image tokens, D width, H head size, F frequencies of an axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.config import RopeConfig
from causalfusion.factorization import raster_of
from causalfusion.machine.runtime import widest_float


def sincos_positions(hidden_size: int, grid_height: int, grid_width: int) -> Tensor:
    """(L, D) fixed 2-D embedding: half the width for the column, half for the row; sines then cosines."""
    return sincos_at(grid_places(grid_height, grid_width), hidden_size)


def sincos_at(places: Tensor, hidden_size: int) -> Tensor:
    """(..., D) float32, the same embedding at places (..., 2)."""
    exact = widest_float(places.device)
    exponents = torch.arange(hidden_size // 4, dtype=exact, device=places.device)
    frequencies = 10_000.0 ** (-exponents / (hidden_size // 4))
    parts = []
    for axis in (1, 0):
        angles = places[..., axis, None].to(exact) * frequencies
        parts += [torch.sin(angles), torch.cos(angles)]
    return torch.cat(parts, dim=-1).float()


def grid_places(grid_height: int, grid_width: int) -> Tensor:
    """(L, 2) int64: row and column of the tokens of a grid, in raster order."""
    row, column = torch.meshgrid(torch.arange(grid_height), torch.arange(grid_width), indexing="ij")
    return torch.stack([row.flatten(), column.flatten()], dim=1)


def resize_table(table: Tensor, trained: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A learned table (L, D) of the grid of training, interpolated (bicubic) to another grid."""
    if trained == grid:
        return table
    maps = table.unflatten(0, trained).permute(2, 0, 1)[None]
    resized = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
    return resized[0].permute(1, 2, 0).flatten(0, 1)


def table_at(table: Tensor, places: Tensor, grid: Tensor | None, trained: tuple[int, int]) -> Tensor:
    """(1 or B, n, D) rows of a table (L, D) of the grid `trained`, for tokens at places (1 or B, n, 2);
    interpolated to another `grid`, (1 or B, 2) of each row's or (B, n, 2) of each token's image."""
    if grid is None:
        return F.embedding(raster_of(places, trained[1]), table)
    each = grid if grid.dim() == 3 else grid[:, None].expand(-1, places.shape[1], -1)
    grids, which = torch.unique(each.flatten(0, 1), dim=0, return_inverse=True)
    tables = [resize_table(table, trained, (rows, columns)) for rows, columns in grids.tolist()]
    first = grids.prod(1).cumsum(0) - grids.prod(1)
    index = raster_of(places, each[..., 1]) + first[which].unflatten(0, each.shape[:2])
    return F.embedding(index, torch.cat(tables))


def rotation_at(
    places: Tensor,
    grid: Tensor,
    config: RopeConfig,
    head_dim: int,
    trained: tuple[int, int],
    first_index: int = 0,
) -> Tensor:
    """(2, B, n, H) float32: cosines and sines that turn tokens at places (B, n, 2) of images of `grid` rows
    and columns, (B, 2) of each row's or (B, n, 2) of each token's, where training had `trained`.

    With axes `raster` the index in raster order counts, which begins with `first_index`.
    """
    grid = grid if grid.dim() == 3 else grid[:, None]
    if config.axes == "raster":
        index = first_index + raster_of(places, grid[..., 1])
        return raster_rotation(index, config, head_dim)
    frequencies, factor = axis_frequencies(grid.flatten(0, 1), config, head_dim, trained)
    angles = (places[..., None].to(frequencies.dtype) * frequencies.unflatten(0, grid.shape[:2])).flatten(-2)
    return _cos_and_sin(angles, config) * factor.view(*grid.shape[:2], 1).float()


def _cos_and_sin(angles: Tensor, config: RopeConfig) -> Tensor:
    """(2, ..., H) of the angles (..., H/2) of its pairs."""
    whole = angles.repeat_interleave(2, -1) if config.pairs == "interleaved" else torch.cat([angles] * 2, -1)
    return torch.stack([torch.cos(whole), torch.sin(whole)]).float()


def _frequencies(config: RopeConfig, count: int, device: torch.device, base: Tensor | None = None) -> Tensor:
    """(..., F) of the widest type, falling from 1; `base` (...) instead of that of the configuration."""
    exact = widest_float(device)
    base = _number(config.base, exact, device) if base is None else base
    last = count - 1 if config.spacing == "closed" else count
    return base[..., None] ** (-torch.arange(count, dtype=exact, device=device) / last)


def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """() a number where it is used: `torch.tensor` copies it there, and a GPU would be waited for."""
    return torch.full((), value, dtype=dtype, device=device)


def axis_frequencies(
    grid: Tensor, config: RopeConfig, head_dim: int, trained: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(frequencies (B, 2, F) of rows and columns, factor (B,) on cosines and sines), of the widest type, for
    images of `grid` (B, 2) rows and columns, where training had `trained`."""
    dim = head_dim // 2  # numbers of a head that turn with one axis
    sides = grid.to(widest_float(grid.device))
    of_training = torch.stack([_number(side, sides.dtype, grid.device) for side in trained])
    longer, longer_trained = sides.amax(1), float(max(trained))
    scale = sides / of_training if config.per_axis else (longer / longer_trained)[:, None].expand(-1, 2)
    scale = scale.clamp(min=1.0)
    own, one = _frequencies(config, dim // 2, grid.device), torch.ones_like(longer)
    if config.extrapolation == "none":
        return own.expand(len(grid), 2, -1), one
    linear = own / scale[..., None]
    if config.extrapolation == "linear":
        return linear, one
    if config.extrapolation == "yarn":
        keep, stretch = _kept(config, dim, of_training, 32, 1), longer / longer_trained
        return linear * (1 - keep) + own * keep, torch.where(stretch > 1, 0.1 * stretch.log() + 1, 1.0)
    ntk = _frequencies(config, dim // 2, grid.device, config.base * scale ** (dim / (dim - 2)))
    if config.extrapolation == "ntk":
        return ntk, one
    if config.extrapolation == "ntk_by_parts":
        keep = _kept(config, dim, of_training, 1.25, 0.75)
        mixed = linear * (1 - keep) + ntk * keep
        keep = _kept(config, dim, of_training, 16, 2)
        return mixed * (1 - keep) + own * keep, one
    tokens, trained_tokens = longer, longer_trained
    if config.extrapolation == "ntk_pro2":
        tokens, trained_tokens = sides.prod(1), float(trained[0] * trained[1])
    if trained_tokens <= 1:
        return ntk, one
    factor = ((2 * tokens).log() / math.log(trained_tokens)).sqrt()
    return ntk, torch.where(2 * tokens > trained_tokens, factor, 1.0)


def _kept(config: RopeConfig, dim: int, trained: Tensor, fast: float, slow: float) -> Tensor:
    """(2, F): the part of each frequency that stays as it is, 1 for those that turn at least `fast`
    times on the grid of training, 0 below `slow` turns, linear between."""

    def index_of(turns: float) -> Tensor:
        return dim * (trained / (2 * math.pi * turns)).log() / (2 * math.log(config.base))

    low, high = index_of(fast).floor().clamp(min=0), index_of(slow).ceil().clamp(max=dim - 1)
    width = torch.where(high == low, 0.001, high - low)
    index = torch.arange(dim // 2, dtype=trained.dtype, device=trained.device)
    return 1 - ((index - low[:, None]) / width[:, None]).clamp(0, 1)


def raster_rotation(index: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    """(2, ..., H) float32: cosines and sines of tokens at these indices (...) of the row of tokens."""
    frequencies = _frequencies(config, head_dim // 2, index.device)
    return _cos_and_sin(index[..., None].to(frequencies.dtype) * frequencies, config)


def rotate(x: Tensor, rotation: Tensor, interleaved: bool = False) -> Tensor:
    """Turn pairs of x (B, N, T, H) by `rotation` (2, 1 or B, 1, T, H): (i, i + H/2), or neighbours."""
    if interleaved:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    return (x * rotation[0] + turned * rotation[1]).to(x.dtype)
