"""A plain model of one with adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from causalfusion.errors import UserError
from causalfusion.interop.bundle import require_elsewhere
from causalfusion.saved.adapted import merged, read_weighted, with_adapters
from causalfusion.saved.folder import (
    AUTOENCODER_FOLDER,
    SAMPLING_FILE,
    latest_model,
    load_spec,
    load_tokenizer,
    load_weights,
    replace_model,
)


def merge_model(model: Path, adapters: Mapping[str | Path, float], out: Path) -> str:
    """Write a model with these adapters, each with its weight, and its own low-rank additions in its weights,
    which are float32 then. Returns a line about it. Raises UserError for a model with nothing to merge."""
    source = latest_model(model)
    require_elsewhere(out, source)
    spec = load_spec(source)
    if not adapters and not spec.model.lora.rank:
        raise UserError(f"{source} has no low-rank additions; give --adapters to merge into it")
    weights = {name: value.float() for name, value in load_weights(source).items()}
    given = read_weighted(adapters)
    spec, weights, tokenizer = with_adapters(spec, weights, load_tokenizer(source, spec), given)
    spec, weights = merged(spec, weights)
    if adapters:
        parts = [str(model), *(f"{weight:g} x {place}" for place, weight in adapters.items())]
        spec = replace(spec, origin=" + ".join(parts))
    # A page, or a classifier, is of the model without them.
    beside = [source / AUTOENCODER_FOLDER, source / SAMPLING_FILE]
    replace_model(out, spec, weights, tokenizer=tokenizer, beside=beside)
    count = sum(value.numel() for value in weights.values())
    told = f"{len(given)} adapter{'s' * (len(given) != 1)}" if given else "its low-rank additions"
    return f"{out}: {source} with {told} inside, {count:,} parameters"
