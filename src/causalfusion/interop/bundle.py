"""A model folder that is complete in itself: it can be moved, published and used wherever it lies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.codec.codec import open_codec
from causalfusion.errors import UserError
from causalfusion.saved.folder import (
    SAMPLING_FILE,
    ModelSpec,
    latest_model,
    load_spec,
    load_tokenizer,
    load_weights,
    open_model_codec,
    replace_model,
)

COPIED = (SAMPLING_FILE, "README.md")
"""Files of a model folder, beside its weights and settings, that go with it."""


def bundle_model(model: Path, out: Path, autoencoder: str = "") -> Path:
    """Write the model into `out` in the current format, its autoencoder inside; the model it was made of.

    `autoencoder`: where that lies, if neither in the model's folder nor where it was in training.
    """
    source = latest_model(model)
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise UserError(f"--out {out} is the model itself, or inside of it; give another folder")
    spec = load_spec(source)
    codec = open_model_codec(source, spec, autoencoder)
    weights, tokenizer = load_weights(source), load_tokenizer(source, spec)
    replace_model(out, spec, weights, tokenizer=tokenizer, autoencoder=codec.autoencoder)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return source


def with_autoencoder(spec: ModelSpec, *, include: bool) -> tuple[ModelSpec, Any]:
    """The settings of a converted model with the fingerprint of its autoencoder, and that autoencoder where
    it is to be included. One that is not on this machine is only opened to be included."""
    place = spec.codec.autoencoder
    if not include and not Path(place).expanduser().exists():
        return spec, None
    codec = open_codec(spec.codec, image_shape=None)
    spec = replace(spec, codec=codec.config, autoencoder_fingerprint=codec.autoencoder_fingerprint)
    return spec, codec.autoencoder if include else None
