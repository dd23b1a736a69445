"""A model on disk: a folder with `config.json` and `model.safetensors`, complete and publishable as it is.

`model.safetensors` holds the weights to generate with (the EMA after training); a training checkpoint may
hold the raw ones beside it in `raw.safetensors`. Weights load strictly.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.codec.tokenizer import Tokenizer, check_fits, open_tokenizer
from causalfusion.config import (
    CodecConfig,
    DiffusionConfig,
    FactorizationConfig,
    ModelConfig,
    TextConfig,
)
from causalfusion.config_json import from_dict, to_dict
from causalfusion.earlier_settings import rename_settings
from causalfusion.errors import UserError
from causalfusion.model.transformer import Transformer

FORMAT = "causalfusion-1"
SAMPLING_FILE = "sample.toml"
"""In a model's folder: how it is best sampled, beneath all that the user says."""
WeightsName = Literal["ema", "raw"]
_FILES: dict[WeightsName, str] = {"ema": "model.safetensors", "raw": "raw.safetensors"}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that generation needs to know of a model beside its weights."""

    model: ModelConfig
    codec: CodecConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    """How it was trained; generation is free of it."""
    text: TextConfig = field(default_factory=TextConfig)
    """Likewise; but what text sees of an image is the model's for good."""
    tokenizer_fingerprint: str = ""
    """Of the tokenizer that lies beside the weights; empty for a model without text."""
    class_names: list[str] = field(default_factory=list)
    class_dropout: float | None = None
    """How often training left the class out: 0 means that "no class", which guidance needs, was never
    trained; None where nobody wrote it down."""
    images_seen: int = 0
    origin: str = ""
    """Where the weights come from, in words."""


def save_model(
    folder: Path,
    spec: ModelSpec,
    weights: dict[str, Tensor],
    raw: dict[str, Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model folder. Not atomic by itself: a checkpoint writes into a folder that it renames."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
        spec = replace(spec, tokenizer_fingerprint=tokenizer.fingerprint)
    states: dict[WeightsName, dict[str, Tensor] | None] = {"ema": weights, "raw": raw}
    for name, state in states.items():
        if state is not None:
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(tensors, folder / _FILES[name], metadata={"format": "pt"})
    text = json.dumps({"format": FORMAT, **to_dict(spec)}, indent=2)
    (folder / "config.json").write_text(text + "\n")


def replace_model(
    folder: Path,
    spec: ModelSpec,
    weights: dict[str, Tensor],
    raw: dict[str, Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model folder whole or not at all; it may take the place of another model, of nothing else."""
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other things than a model; give another --out")
    temporary = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_model(temporary, spec, weights, raw, tokenizer)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"model {folder} could not be written: {error}") from error


def load_spec(folder: Path) -> ModelSpec:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model: no config.json there; give a folder made by train or convert"
        )
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); the model folder is damaged") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not in the format {FORMAT}; give a folder made by train or convert")
    return from_dict(ModelSpec, rename_settings(values))


def load_tokenizer(folder: Path, spec: ModelSpec) -> Tokenizer | None:
    """The tokenizer of a model folder; None for a model without text."""
    if not spec.model.vocab_size:
        return None
    tokenizer = open_tokenizer(str(folder))
    check_fits(tokenizer, spec.model.vocab_size, str(folder))
    if tokenizer.fingerprint != spec.tokenizer_fingerprint:
        raise UserError(
            f"{folder / TOKENIZER_FILE} is not the tokenizer that the model was trained with (fingerprint "
            f"{tokenizer.fingerprint}, expected {spec.tokenizer_fingerprint}); put that one back"
        )
    return tokenizer


def load_weights(folder: Path, name: WeightsName = "ema") -> dict[str, Tensor]:
    path = folder / _FILES[name]
    if not path.is_file():
        raise UserError(f"{folder} has no {_FILES[name]}; it holds no {name} weights")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error
    for key, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"{path}: {key} holds values that are not finite; take another checkpoint, the training that "
                "wrote this one had diverged"
            )
    return weights


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Load all weights or none: a missing, unexpected or misshapen key is an error that names it."""
    expected = model.state_dict()
    for word, keys in (
        ("lacks", sorted(expected.keys() - weights.keys())),
        ("has the unexpected", sorted(weights.keys() - expected.keys())),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(
                f"{where} {word} weight {keys[0]}{more}; the weights do not fit the model's config"
            )
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"{where}: {key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            )
    model.load_state_dict(weights, assign=assign)


def load_model(
    folder: Path, name: WeightsName = "ema", device: torch.device | str = "cpu"
) -> tuple[Transformer, ModelSpec]:
    """The model in evaluation mode, and what it needs to be used."""
    spec = load_spec(folder)
    with torch.device("meta"):  # nothing is drawn only to be overwritten
        model = Transformer(spec.model)
    weights = {key: value.float() for key, value in load_weights(folder, name).items()}  # some are float16
    load_strictly(model, weights, str(folder), assign=True)
    if spec.model.position_embedding != "learnable":
        model.fill_positions()
    return model.to(device).eval().requires_grad_(False), spec


def checkpoints_of(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    names = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(names, key=lambda p: int(p.name))


def packaged_models() -> dict[str, Path]:
    """The models that come with this package, by name."""
    folder = Path(str(resources.files("causalfusion") / "models"))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if (path / "config.json").is_file()}


def latest_model(path: Path) -> Path:
    """A model folder from itself, from the run folder that holds its checkpoints, or from the name of a
    packaged model. What lies on disk goes before a packaged model of the same name, if it is a model."""
    if (path / "config.json").is_file():
        return path
    found = checkpoints_of(path)
    if found:
        return found[-1]
    packaged = packaged_models()
    if str(path) in packaged:
        return packaged[str(path)]
    raise UserError(
        f"{path} holds no model: expected a folder with config.json, a run with checkpoints, or the name of "
        f"a packaged model ({', '.join(packaged) or 'there is none in this installation'})"
    )
