"""Self-contained model folders, with the autoencoder inside, which can be moved and published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.codec.codec import open_codec
from causalfusion.errors import UserError
from causalfusion.saved.folder import (
    CLASSIFIER_FILE,
    SAMPLING_FILE,
    ModelSpec,
    latest_model,
    load_spec,
    load_tokenizer,
    load_weights,
    open_model_codec,
    replace_model,
)

COPIED = (SAMPLING_FILE, CLASSIFIER_FILE, "README.md")
"""Files of a model folder that are copied along with its weights and settings."""


def bundle_model(model: Path, out: Path, autoencoder: str = "") -> Path:
    """Write a model, with its autoencoder, into `out` in the current format. Returns the source's folder.

    `autoencoder` is its path, if it is neither in the model's folder nor at the path recorded in training.
    Raises UserError.
    """
    source = latest_model(model)
    require_elsewhere(out, source)
    spec = load_spec(source)
    codec = open_model_codec(source, spec, autoencoder)
    weights, tokenizer = load_weights(source), load_tokenizer(source, spec)
    replace_model(
        out,
        spec,
        weights,
        tokenizer=tokenizer,
        autoencoder=codec.autoencoder,
        beside=[source / name for name in COPIED],
    )
    return source


def require_elsewhere(out: Path, source: Path) -> None:
    """Raises UserError for a folder that is the model's own, or in it: it would be replaced."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise UserError(f"--out {out} is the model itself, or inside of it; give another folder")


def with_autoencoder(spec: ModelSpec, *, include: bool) -> tuple[ModelSpec, Any]:
    """(settings of a converted model with its autoencoder's fingerprint, the autoencoder if it is to be
    included). An autoencoder that is not on this machine is opened only if it is to be included."""
    place = spec.codec.autoencoder
    if not include and not Path(place).expanduser().exists():
        return spec, None
    codec = open_codec(spec.codec, image_shape=None)
    spec = replace(spec, codec=codec.config, autoencoder_fingerprint=codec.autoencoder_fingerprint)
    return spec, codec.autoencoder if include else None
