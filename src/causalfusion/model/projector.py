"""A second reading of a transformer: the output of one of its layers, through an MLP, beside its predictions.

Put on a model from outside for training; a saved model is without it.

Shape letters: B rows, n noised image tokens, D width of image tokens, E width of what is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from causalfusion.model.layers import segments_of
from causalfusion.model.predictions import Predictions
from causalfusion.model.streams import Rows
from causalfusion.model.transformer import Transformer

_NAME = "projector"


def is_of_projector(name: str) -> bool:
    """True for the name of a weight of the MLP."""
    return name.startswith(f"{_NAME}.")


def add_projector(model: Transformer, layer: int, width: int, out: int) -> None:
    """Have predictions hold `projected` (B, n, E), read from the noised image tokens that leave this layer
    (from 1) through three linear layers with SiLU between them (2410.06940), while gradients are on."""
    size = model.config.image_size
    sizes = [nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out)]
    projector = nn.Sequential(*sizes)
    model.add_module(_NAME, projector)
    left: list[Tensor | Rows] = []
    last = layer == model.config.depth

    def keep(_: nn.Module, __: tuple[Any, ...], x: Tensor | Rows) -> None:
        left[:] = [x] if torch.is_grad_enabled() else []

    def project(_: nn.Module, inputs: tuple[Any, ...], predictions: Predictions) -> Predictions:
        if not left:
            return predictions
        sequence = inputs[0]
        found = segments_of(left.pop(), sequence, sequence.first_output if last else 0)
        pairs = zip(sequence.segments, found, strict=True)
        noised = [x for segment, x in pairs if segment.kind == "image" and segment.role == "noised"]
        rows = torch.cat(noised, 1) if noised else found[0].new_zeros(len(found[0]), 0, size)
        return predictions._replace(projected=projector(rows))

    model.blocks[layer - 1].register_forward_hook(keep)
    model.register_forward_hook(project)
