"""`causalfusion merge`: one model from several that went on from the same beginning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import UserError
from causalfusion.saved.adapted import merged
from causalfusion.saved.folder import AUTOENCODER_FOLDER, ModelSpec, read_latest
from causalfusion.saved.whole import WholeModel, read_whole, write_model
from causalfusion.weight_files import require_same_shapes

_MAY_DIFFER = (
    *("factorization.", "images_seen", "origin", "class_dropout", "codec.autoencoder"),
    *("diffusion.error_in", "diffusion.loss_weight", "diffusion.snr_limit", "diffusion.least_level"),
    "diffusion.level_",
)
"""Settings, or their beginnings, that say how a model was trained, or where it lies, and not what it is."""

_LONG = {
    "class_names": "other classes",
    "tokenizer_fingerprint": "another tokenizer",
    "autoencoder_fingerprint": "another autoencoder",
}


@dataclass(frozen=True)
class Merged:
    """A model that was written."""

    folder: Path
    distances: tuple[float, ...]
    """How far the weights of each model but the first are from the first's, relative to their norm."""


def merge(models: Sequence[Path], shares: Sequence[float], out: Path) -> Merged:
    """Write the model whose weights are the sum of those of `models`, each times its share; without shares,
    their mean. Everything else is as in the first. Raises UserError for models that are not of one kind, and
    shares that do not sum to 1."""
    if len(models) < 2:
        raise UserError(f"merge has {len(models)} model; expected two or more")
    parts = list(shares) or [1 / len(models)] * len(models)
    if len(parts) != len(models) or not math.isclose(sum(parts), 1, abs_tol=1e-6):
        given = " ".join(f"{part:g}" for part in parts)
        raise UserError(f"--shares is {given}; expected {len(models)} numbers, one a model, that sum to 1")
    found = [read_latest(model, _read) for model in models]
    for model, (_, folder) in zip(models, found, strict=True):
        if out.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError(f"--out {out} holds {model}, which is merged; give another folder")
    (first, base), *others = found
    for model, (other, _) in zip(models[1:], others, strict=True):
        _require_alike(first.spec, other.spec, str(model), str(models[0]))
        require_same_shapes(_shapes(other.weights), _shapes(first.weights), str(model))
    weights = {name: _sum([one.weights[name] for one, _ in found], parts) for name in first.weights}
    made_of = " + ".join(f"{part:g} x {model}" for part, model in zip(parts, models, strict=True))
    spec = replace(first.spec, images_seen=max(one.spec.images_seen for one, _ in found), origin=made_of)
    write_model(out, replace(first, spec=spec, weights=weights), [base / AUTOENCODER_FOLDER])
    return Merged(out, tuple(_distance(first.weights, other.weights) for other, _ in others))


def _read(folder: Path) -> WholeModel:
    """A model, its low-rank additions in its weights: the two factors of one cannot be summed."""
    model = read_whole(folder)
    spec, weights = merged(model.spec, model.weights)
    return replace(model, spec=spec, weights=weights)


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _require_alike(first: ModelSpec, other: ModelSpec, name: str, of: str) -> None:
    """Raises UserError, naming a setting, for a model whose weights mean something else."""
    ours, theirs = (flat(to_dict(spec)) for spec in (first, other))
    for setting, value in theirs.items():
        training = setting.startswith(_MAY_DIFFER) or (
            setting.startswith("text.") and setting != "text.image_context"
        )
        if training or value == ours.get(setting):
            continue
        differs = f"{name} has {setting} {value!r}, {of} has {ours.get(setting)!r}"
        if setting in _LONG:
            differs = f"{name} has {_LONG[setting]} than {of}"
        raise UserError(
            f"{differs}; expected models of one kind, such as a model and what it was fine-tuned to"
        )


def _sum(tensors: Sequence[Tensor], parts: Sequence[float]) -> Tensor:
    """In the widest type in which one of them is stored."""
    total = sum(part * tensor.double() for part, tensor in zip(parts, tensors, strict=True))
    assert isinstance(total, Tensor)
    return total.to(reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))


def _distance(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    apart = sum(float((first[name].double() - other[name].double()).square().sum()) for name in first)
    return math.sqrt(apart / sum(float(value.double().square().sum()) for value in first.values()))
