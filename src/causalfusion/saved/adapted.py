"""A model with adapters: their additions, new classes and new words in its own weights, mixed by weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

from torch import Tensor, isfinite

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import LoraConfig
from causalfusion.errors import UserError, check
from causalfusion.files import sha256_of
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.tables import WORD_TABLES, chosen_classes, class_table_of, with_word
from causalfusion.model.transformer import Transformer
from causalfusion.saved.adapter import Adapter, read_adapter
from causalfusion.saved.adapter_files import WEIGHTS_FILE
from causalfusion.saved.folder import ModelSpec, load_strictly
from causalfusion.saved.hub import HubName
from causalfusion.saved.hub_adapter import adapter_fetched_once
from causalfusion.weight_files import fingerprint_of

Weighted = Sequence[tuple[Adapter, float]]
"""Adapters, each with the weight that its additions have."""


def read_weighted(
    adapters: Mapping[str | Path, float], fetch: Callable[[HubName], Path] = adapter_fetched_once
) -> Weighted:
    """The adapters of {place: weight}, those of the hub by `fetch`. Raises UserError for what is none, before
    anything is read."""
    expected = "weights by place, such as {'runs/hearts-lora': 0.7}"
    check(isinstance(adapters, Mapping), "adapters", adapters, expected)
    for place, weight in adapters.items():
        fits = isinstance(weight, Real) and math.isfinite(weight)
        check(fits, f"the weight of adapter {place}", weight, "a finite number")
    return [(read_adapter(Path(place), fetch), weight) for place, weight in adapters.items()]


def with_adapters(
    spec: ModelSpec,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    adapters: Weighted,
    fingerprint: str = "",
) -> tuple[ModelSpec, dict[str, Tensor], Tokenizer | None]:
    """A model, by its settings and float32 weights, with adapters inside. The weight of an adapter scales its
    low-rank additions; new words and classes are there as they were learned. `fingerprint` is the hash of the
    model's weights as they were before earlier adapters; empty: there are none. Raises UserError for an
    adapter of another model, and for two with the same word or class."""
    _require_own(fingerprint, weights, adapters)
    grown = dict(weights)
    for adapter, weight in adapters:
        for layer, addition in adapter.additions.items():
            name = f"{layer}.weight"
            fits = name in grown and tuple(grown[name].shape) == (len(addition.b), addition.a.shape[1])
            if not fits:
                raise UserError(f"{adapter.told} is of another model: this one has no {layer} of its shape")
            grown[name] = grown[name] + (weight * addition.scale) * (addition.b @ addition.a)
            if not bool(isfinite(grown[name]).all()):
                raise UserError(f"{adapter.told} x {weight:g} makes {name} too large; give a smaller weight")
    for adapter, _ in adapters:
        spec, grown = _with_classes(spec, grown, adapter)
        spec, grown, tokenizer = _with_word(spec, grown, tokenizer, adapter)
    return spec, grown, tokenizer


def merged(spec: ModelSpec, weights: dict[str, Tensor]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """A model without low-rank additions of its own: they are in the weights that they are added to."""
    scale, plain = spec.model.lora.scale, dict(weights)
    for name in [name for name in weights if name.endswith(".lora_a")]:
        layer = name.removesuffix(".lora_a")
        a, b = plain.pop(name), plain.pop(f"{layer}.lora_b")
        plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + scale * (b @ a)
    return replace(spec, model=replace(spec.model, lora=LoraConfig())), plain


def _require_own(found: str, weights: dict[str, Tensor], adapters: Weighted) -> None:
    """Raises UserError for an adapter that was trained on other weights than these, whose hash is `found`, if
    it is known."""
    for adapter, _ in adapters:
        if adapter.facts is None:
            continue
        found = found or fingerprint_of(weights)
        if adapter.facts.fingerprint != found:
            raise UserError(
                f"{adapter.told} is an adapter of another model, {adapter.facts.base} (its weights' hash "
                f"{adapter.facts.fingerprint[:16]}, this model's is {found[:16]}); give --model "
                f"{adapter.facts.base}, or an adapter of this one"
            )


def _with_classes(
    spec: ModelSpec, weights: dict[str, Tensor], adapter: Adapter
) -> tuple[ModelSpec, dict[str, Tensor]]:
    names = adapter.facts.classes if adapter.facts is not None else []
    table, rows = class_table_of(weights), adapter.class_rows
    if not names or table is None or rows is None:
        return spec, weights
    count = spec.model.num_classes
    known = spec.class_names or [str(number) for number in range(count)] * (count > 1)
    again = sorted(set(names) & set(known))
    if again:
        raise UserError(f"{adapter.told} adds the class {again[0]}, which is there already; give one of them")
    if rows.shape != (len(names), weights[table].shape[1]):
        raise UserError(f"{adapter.told} is of another model: its rows of classes have another width")
    grown = chosen_classes(weights[table], [*range(len(known)), *[-1] * len(names)], rows)
    model = replace(spec.model, num_classes=len(known) + len(names))
    return replace(spec, model=model, class_names=[*known, *names]), {**weights, table: grown}


def _with_word(
    spec: ModelSpec, weights: dict[str, Tensor], tokenizer: Tokenizer | None, adapter: Adapter
) -> tuple[ModelSpec, dict[str, Tensor], Tokenizer | None]:
    if not adapter.word_rows or adapter.facts is None:
        return spec, weights, tokenizer
    if tokenizer is None or {name for name in WORD_TABLES if name in weights} != set(adapter.word_rows):
        raise UserError(f"{adapter.told} adds a word, and this model has no table for it; it is of another")
    if any(row.shape != weights[name].shape[1:] for name, row in adapter.word_rows.items()):
        raise UserError(f"{adapter.told} is of another model: its word has another width")
    tokenizer = tokenizer.with_word(adapter.facts.word)
    model = replace(spec.model, vocab_size=tokenizer.vocab_size)
    spec = replace(spec, model=model, tokenizer_fingerprint=tokenizer.fingerprint)
    return spec, with_word(weights, adapter.word_rows), tokenizer


def adapted(
    model: Transformer,
    spec: ModelSpec,
    tokenizer: Tokenizer | None,
    adapters: Weighted,
    fingerprint: str = "",
) -> tuple[Transformer, ModelSpec, Tokenizer | None]:
    """A loaded model with adapters inside, as `with_adapters`, on the same device; the loaded one stays as it
    is."""
    device = next(model.parameters()).device
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    spec, weights, tokenizer = with_adapters(spec, weights, tokenizer, adapters, fingerprint)
    with skeleton():
        changed = Transformer(replace(spec.model, rope=model.config.rope))  # which may have been extrapolated
    load_strictly(changed, weights, "the model with its adapters", assign=True)
    if spec.model.position_embedding != "learnable":
        changed.fill_positions()
    return changed.to(device).eval().requires_grad_(False), spec, tokenizer


def told_of(adapters: Weighted) -> list[str]:
    """Name, hash and weight of each adapter."""
    return [
        f"{adapter.name} {sha256_of(adapter.place / WEIGHTS_FILE)[:16]} x {weight:g}"
        for adapter, weight in adapters
    ]
