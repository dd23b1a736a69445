"""Starting from another model: the weights that are taken over, and those that are trained."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from causalfusion.config import ModelConfig, RunConfig
from causalfusion.model.learned import TABLES_OF_PLACES, learned_of
from causalfusion.model.positions import resize_table
from causalfusion.model.transformer import Transformer
from causalfusion.train.new_rows import rows_of_adapter

_OF_TOKENS = ("image_in", "image_out", "head.token_in", "head.image_out")
"""Layers with a row or a column for each number of an image token."""


def for_grid(weights: dict[str, Tensor], of: ModelConfig, to: ModelConfig) -> dict[str, Tensor]:
    """The weights of a model `of` one grid for the same model with the grid of another: its learned tables of
    positions interpolated."""
    before, after = (of.grid_height, of.grid_width), (to.grid_height, to.grid_width)
    fitted = dict(weights)
    for name in TABLES_OF_PLACES:
        if name in weights and before != after and len(weights[name]) == of.num_tokens:
            fitted[name] = resize_table(weights[name], before, after)
    return fitted


def for_patches(
    weights: dict[str, Tensor], of: ModelConfig, model: Transformer
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """(The weights of a model `of` patches of one size for a model of patches of another; the names of those
    that begin anew, the layers of image tokens)."""
    fresh = frozenset(name for name in model.state_dict() if name.rpartition(".")[0] in _OF_TOKENS)
    warnings.warn(
        f"train.init has image tokens of {of.token_dim} numbers, this model of {model.config.token_dim}: the "
        "layers into and out of them begin anew",
        stacklevel=2,
    )
    return {name: value for name, value in weights.items() if name not in fresh}, fresh


def freeze_rest(model: Transformer, config: RunConfig) -> dict[nn.Parameter, slice]:
    """Leave the weights that the settings do not train as they are. Returns the rows that learn of a table of
    which not all do."""
    learned = learned_of(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learned)
    return {} if config.finetune.trained == "none" else rows_of_adapter(model, config)
