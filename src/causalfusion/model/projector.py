"""Second readings of a transformer, beside its predictions: a layer through an MLP, or classes of images.

Put on a model from outside; the model itself is saved without them.

Shape letters: B rows, n noised image tokens, D width of image tokens, E width of what is read, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from causalfusion.model.layers import segments_of
from causalfusion.model.predictions import Predictions
from causalfusion.model.streams import Rows
from causalfusion.model.transformer import Transformer

_PROJECTOR, _CLASSIFIER = "projector", "classifier"


def is_of_projector(name: str) -> bool:
    """True for the name of a weight of the MLP."""
    return name.startswith(f"{_PROJECTOR}.")


def is_of_classifier(name: str) -> bool:
    """True for the name of a weight of the classifier."""
    return name.startswith(f"{_CLASSIFIER}.")


def is_beside(name: str) -> bool:
    """True for the name of a weight that is no part of the model itself."""
    return is_of_projector(name) or is_of_classifier(name)


def add_projector(model: Transformer, layer: int, width: int, out: int) -> None:
    """Have predictions hold `projected` (B, n, E), read from the noised image tokens that leave this layer
    (from 1) through three linear layers with SiLU between them (2410.06940), while gradients are on."""
    size = model.config.image_size
    sizes = [nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out)]
    projector = nn.Sequential(*sizes)
    model.add_module(_PROJECTOR, projector)
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
        noised = [x for segment, x in pairs if segment.timesteps is not None]  # their role may be clean
        rows = torch.cat(noised, 1) if noised else found[0].new_zeros(len(found[0]), 0, size)
        return predictions._replace(projected=projector(rows))

    model.blocks[layer - 1].register_forward_hook(keep)
    model.register_forward_hook(project)


def add_classifier(model: Transformer, num_classes: int) -> None:
    """Have predictions hold `classes` (B, K), logits of a linear layer behind the mean and norm of the image
    tokens that leave the last block: those of a sequence's last segment, all of which have to be read. What
    the model predicts else gets no gradient."""
    size = model.config.image_size
    classifier = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, num_classes))
    model.add_module(_CLASSIFIER, classifier)
    left: list[Tensor | Rows] = []

    def keep(_: nn.Module, __: tuple[Any, ...], x: Tensor | Rows) -> None:
        left[:] = [x]

    def classify(_: nn.Module, inputs: tuple[Any, ...], predictions: Predictions) -> Predictions:
        sequence = inputs[0]
        tokens = segments_of(left.pop(), sequence, sequence.first_output)[-1]
        return Predictions(predictions.image.detach(), classes=classifier(tokens.mean(1)))

    model.blocks[-1].register_forward_hook(keep)
    model.register_forward_hook(classify)
