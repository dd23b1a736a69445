"""The rotations of a packed sequence: of image tokens by their coordinates, or of all tokens by their places
in the text.

Shape letters: B rows, T packed tokens, n tokens of a segment, L image tokens, H head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causalfusion.config import ModelConfig
from causalfusion.factorization import raster_of
from causalfusion.model.positions import grid_places, raster_rotation, rotation_at
from causalfusion.model.text_rotation import text_rotation
from causalfusion.sequence import EVERYWHERE, PackedSequence


def sequence_rotation(sequence: PackedSequence, config: ModelConfig, table: Tensor | None) -> Tensor | None:
    """(2, 1 or B, 1, T, H) cosines and sines; None: nothing is turned. `table` (2, L, H) holds those of the
    grid of training, where image tokens turn with their coordinates."""
    if config.vocab_size and config.language.positions == "rope":
        return _of_text_places(sequence, config)
    if table is None:
        return None
    parts = []
    for segment in sequence.segments:
        if segment.places is not None and segment.kind == "image":
            if segment.grid is None:
                parts.append(table[:, raster_of(segment.places, config.grid_width)])
            else:
                parts.append(image_rotation(segment.places, segment.grid, config))
        elif segment.kind == "class" and config.rope.axes == "raster":
            index = torch.arange(segment.num_tokens, device=table.device) % config.num_condition_tokens
            turned = raster_rotation(index, config.rope, config.head_dim)[:, None]
            parts.append(turned.expand(-1, segment.ar_step.shape[0], -1, -1))
        else:  # text tokens are not turned
            unit = table.new_zeros(2, segment.ar_step.shape[0], segment.num_tokens, config.head_dim)
            unit[0] = 1
            parts.append(unit)
    rows = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(-1, rows, -1, -1) for part in parts], dim=2)[:, :, None]


def table_of_training(config: ModelConfig) -> Tensor:
    """(2, L, H) rotations of the tokens of the grid of training, in raster order."""
    grid = (config.grid_height, config.grid_width)
    return image_rotation(grid_places(*grid)[None], torch.tensor([grid]), config)[:, 0]


def image_rotation(places: Tensor, grid: Tensor, config: ModelConfig) -> Tensor:
    """(2, B, n, H) rotations of tokens at places (B, n, 2) of images of `grid` rows and columns, (B, 2) or
    (B, n, 2)."""
    side = config.rope.trained_side
    trained = (side, side) if side else (config.grid_height, config.grid_width)
    return rotation_at(places, grid, config.rope, config.head_dim, trained, config.num_condition_tokens)


def _of_text_places(sequence: PackedSequence, config: ModelConfig) -> Tensor:
    """Text and image tokens turn with their places in the text; class tokens do not turn."""
    places = sequence.text_places
    places = torch.where(places == EVERYWHERE, 0, places)
    lengths = places.amax(1) + 1
    return text_rotation(places, lengths, config.language, config.head_dim)[:, :, None]
