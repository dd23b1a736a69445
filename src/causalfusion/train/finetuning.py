"""Going on from a model with other data: the settings that it brings with it, and the run that follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.config import CodecConfig, ModelConfig, RunConfig
from causalfusion.config.serialize import to_dict
from causalfusion.config.sizes import size_text
from causalfusion.errors import UserError
from causalfusion.saved.folder import ModelSpec, autoencoder_place, load_spec, read_latest
from causalfusion.saved.sampling import read_sampling

IMAGES = 8_000
RATE = 0.064
"""Learning rate times the model's width."""


def settings_beneath(model: str) -> dict[str, Any]:
    """Tables of settings to lay beneath those that are given: those with which the model was trained, as far
    as they do not depend on its data. Raises UserError where there is no model."""
    spec, folder = read_latest(Path(model), load_spec)
    text = to_dict(spec.text)
    text["tokenizer"] = "init" if spec.model.vocab_size else ""
    side = size_text(spec.codec.image_height, spec.codec.image_width)
    tables = {
        "data": {"image_size": side} if side else {},
        "factorization": to_dict(spec.factorization),
        "text": text,
        "train": {
            "images": IMAGES,
            "batch_size": 32,
            "lr": min(RATE / spec.model.hidden_size, 1e-3),
            "eps": 1e-8,
            "lr_schedule": "cosine",
            "warmup_images": 640,
            "ema_decay": 0.99,
            "precision": "auto",
            "evaluate_every": 0,
        },
    }
    if spec.class_dropout is not None:
        tables["train"]["class_dropout"] = spec.class_dropout
    sampling = read_sampling(folder)
    if sampling is not None:
        tables["sample"] = to_dict(sampling)
    return tables


def continued(config: RunConfig) -> RunConfig:
    """The settings of a run with everything that follows from the model it goes on from, `train.init`:
    architecture, codec, path and prediction; its grid and its classes follow from the data. Raises UserError
    for a model without images."""
    spec, folder = read_latest(Path(config.train.init), load_spec)
    if spec.model.text_only:
        raise UserError(
            f"{folder} is a language model without images; causalfusion train --config graft teaches it some"
        )
    return replace(
        config, codec=_codec(spec, folder), model=_without_data(spec.model), diffusion=spec.diffusion
    )


def _codec(spec: ModelSpec, folder: Path) -> CodecConfig:
    """The codec of the model, for images of any one size."""
    codec = replace(spec.codec, normalization="given", image_height=0, image_width=0)
    if codec.autoencoder:
        codec = replace(codec, autoencoder=autoencoder_place(folder, codec.autoencoder))
    return codec


def _without_data(model: ModelConfig) -> ModelConfig:
    """The model's settings without those that follow from data."""
    return replace(model, num_classes=0, grid_height=0, grid_width=0)
