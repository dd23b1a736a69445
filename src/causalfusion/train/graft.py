"""The weights of a language model in one that also draws.

Shape letters: V rows of the text's embedding, D width.
"""

from __future__ import annotations

from torch import Tensor

from causalfusion.config import NUM_MARKERS, RunConfig
from causalfusion.model.parts import is_of_text
from causalfusion.model.transformer import Transformer
from causalfusion.rng import derive_generator


def for_drawing(weights: dict[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The weights of a language model for one that also draws: markers begin as the average of all tokens,
    told apart by a little noise; weights of image tokens begin as those of the text, where they are alike."""
    model, found = config.model, dict(weights)
    for table, markers in (("text_embedding", "marker_embedding"), ("text_out", "marker_out")):
        rows = weights.get(f"{table}.weight")
        if rows is not None:
            mean, std = rows.mean(0), float(rows.std())
            noise = mean.new_empty(NUM_MARKERS, len(mean))
            noise.normal_(std=std / 4, generator=derive_generator(config.train.seed, "markers", 0))
            found[f"{markers}.weight"] = mean + noise
    alike = (model.image_size, model.image_mlp_size) == (model.hidden_size, model.mlp_size)
    if model.own_image_weights and alike:
        for name, value in weights.items():
            parts = name.split(".")
            if parts[0] == "blocks":
                found[".".join([*parts[:2], "image", *parts[2:]])] = value
            elif parts[0] == "norm_out":
                found[f"image_{name}"] = value
    return found


def fresh_of(model: Transformer) -> frozenset[str]:
    """Weights that a language model does not have, and that begin at random where nothing else is said."""
    return frozenset(name for name in model.state_dict() if not is_of_text(name))
