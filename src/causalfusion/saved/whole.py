"""A model with all that is beside its weights, to make another one of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.model.projector import is_of_classifier
from causalfusion.saved.folder import (
    CLASSIFIER_FILE,
    SAMPLING_FILE,
    ModelSpec,
    load_spec,
    load_tokenizer,
    load_weights,
    save_model,
)
from causalfusion.saved.replace import replace_folder
from causalfusion.weight_files import read_weights, save_file


@dataclass(frozen=True)
class WholeModel:
    spec: ModelSpec
    weights: dict[str, Tensor]
    """As they are stored; those of its classifier too, if it has one."""
    tokenizer: Tokenizer | None
    sampling: bytes
    """Its file of recommended sampling settings; empty without one."""


def read_whole(folder: Path) -> WholeModel:
    """Everything at once, as a training may remove the checkpoint later. Raises UserError."""
    spec, sampling, head = load_spec(folder), folder / SAMPLING_FILE, folder / CLASSIFIER_FILE
    weights = load_weights(folder) | (read_weights(head) if head.is_file() else {})
    content = sampling.read_bytes() if sampling.is_file() else b""
    return WholeModel(spec, weights, load_tokenizer(folder, spec), content)


def write_model(out: Path, model: WholeModel, beside: Iterable[Path] = ()) -> None:
    """Write a model folder as `replace_model` does."""
    head = {name: value for name, value in model.weights.items() if is_of_classifier(name)}
    weights = {name: value for name, value in model.weights.items() if name not in head}

    def write(folder: Path) -> None:
        save_model(folder, model.spec, weights, tokenizer=model.tokenizer)
        if head:
            save_file(head, folder / CLASSIFIER_FILE)
        if model.sampling:
            (folder / SAMPLING_FILE).write_bytes(model.sampling)

    replace_folder(out, write, beside=beside, origin=model.spec.origin)
