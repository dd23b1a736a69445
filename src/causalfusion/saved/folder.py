"""A model on disk: a folder with `config.json` and `model.safetensors`, complete and publishable as it is.

`model.safetensors` holds the weights to generate with (the EMA after training); a training checkpoint may
hold the raw ones beside it in `raw.safetensors`. Weights load strictly.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from causalfusion.codec.autoencoder import fingerprint, save_autoencoder
from causalfusion.codec.codec import Codec, open_codec
from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.codec.tokenizer import Tokenizer, check_fits, open_tokenizer
from causalfusion.config import (
    CodecConfig,
    DiffusionConfig,
    FactorizationConfig,
    ModelConfig,
    TextConfig,
)
from causalfusion.config.serialize import from_dict, read_json, to_dict
from causalfusion.errors import UserError
from causalfusion.files import holds_anything, remove_leftovers, temporary_name
from causalfusion.model.transformer import Transformer
from causalfusion.saved.earlier_formats import FORMAT_1, FORMAT_2, bring_forward
from causalfusion.weight_files import count_blocks, read_shapes, read_weights, require_same_shapes

T = TypeVar("T")
FORMAT = "causalfusion-3"
SAMPLING_FILE = "sample.toml"
"""In a model's folder: how it is best sampled, beneath all that the user says."""
WeightsName = Literal["ema", "raw"]
AUTOENCODER_FOLDER = "autoencoder"
"""In a model folder: the autoencoder that it needs, where the folder is complete in itself."""
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
    autoencoder_fingerprint: str = ""
    """Hash of the weights of the autoencoder whose latents the model knows; empty for pixels, or unknown."""
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
    autoencoder: Any = None,
) -> None:
    """Write a model folder; with `autoencoder`, that goes inside. Not atomic by itself: a checkpoint writes
    into a folder that it renames."""
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        save_autoencoder(autoencoder, folder / AUTOENCODER_FOLDER)
        spec = replace(
            spec, autoencoder_fingerprint=fingerprint(autoencoder),
            codec=replace(spec.codec, autoencoder=AUTOENCODER_FOLDER),
        )  # fmt: skip
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
    autoencoder: Any = None,
) -> None:
    """Write a model folder whole or not at all; it may take the place of another model, of nothing else."""
    if not (folder / "config.json").is_file() and holds_anything(folder):
        raise UserError(f"{folder} holds other things than a model; give another --out")
    temporary = temporary_name(folder)
    remove_leftovers(folder.parent)
    try:
        save_model(temporary, spec, weights, raw, tokenizer, autoencoder)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"model {folder} could not be written: {error}") from error


def load_spec(folder: Path) -> ModelSpec:
    return read_spec(folder)[0]


def read_spec(folder: Path) -> tuple[ModelSpec, list[str]]:
    """The settings of a model folder, and what an earlier format lacked and was filled in.

    Every key is required in the current format. Raises UserError.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model: no config.json there; give a folder made by train or convert"
        )
    values = read_json(path, "model")
    if not isinstance(values, dict) or values.get("format") not in (FORMAT, FORMAT_2, FORMAT_1):
        raise UserError(
            f"{path} is not in the format {FORMAT}, {FORMAT_2} or {FORMAT_1}; give a folder made by train or "
            "convert, or install a newer version"
        )
    filled: list[str] = []
    try:
        written_in = values.pop("format")
        if written_in != FORMAT:
            values, filled = bring_forward(written_in, values)
        return from_dict(ModelSpec, values, complete=True), filled
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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


def open_model_codec(folder: Path, spec: ModelSpec, autoencoder: str = "") -> Codec:
    """The codec of a model folder, with the autoencoder that is given, or that lies in the folder, or where
    the model was trained with it. Raises UserError for an autoencoder of other weights than the model's."""
    if not spec.codec.autoencoder:
        if autoencoder:
            raise UserError(f"{folder} is a model of pixels; it takes no autoencoder, {autoencoder}")
        codec = open_codec(spec.codec, image_shape=None)
        makes, takes = _token_sizes(codec), _token_sizes(spec.model)
        if makes != takes:
            raise UserError(
                f"{folder / 'config.json'}: the codec makes (rows, columns, numbers in a token) {makes}, the "
                f"model takes {takes}; it is damaged"
            )
        return codec
    place = autoencoder or _autoencoder_place(folder, spec.codec.autoencoder)
    try:
        codec = open_codec(replace(spec.codec, autoencoder=place), image_shape=None)
    except UserError as error:
        remedy = "" if autoencoder else f"; the model {folder} needs it: give its place as --autoencoder PATH"
        raise UserError(f"{error}{remedy}") from None
    found, expected = codec.autoencoder_fingerprint, spec.autoencoder_fingerprint
    fits = _token_sizes(codec) == _token_sizes(spec.model)
    if not fits or (expected and found != expected):
        why = f"its weights' hash is {found[:16]}, expected {expected[:16]}" if fits else "its latents differ"
        raise UserError(
            f"{place} is not the autoencoder that the model {folder} was trained with ({why}); give that one "
            "as --autoencoder PATH"
        )
    return codec


def _token_sizes(of: Codec | ModelConfig) -> tuple[int, int, int]:
    """Rows and columns of tokens in an image, and numbers in a token."""
    return of.grid_height, of.grid_width, of.token_dim


def _autoencoder_place(folder: Path, recorded: str) -> str:
    """Inside the model's folder, else as recorded: relative to that folder, or to where we are."""
    for place in (folder / AUTOENCODER_FOLDER, folder / recorded):
        if place.exists():
            return str(place)
    return recorded


def load_weights(folder: Path, name: WeightsName = "ema") -> dict[str, Tensor]:
    """As they are stored. Raises UserError where they are missing, damaged or not finite."""
    return read_weights(_weights_file(folder, name))


def _weights_file(folder: Path, name: WeightsName) -> Path:
    path = folder / _FILES[name]
    if not path.is_file():
        raise UserError(f"{folder} has no {_FILES[name]}; it holds no {name} weights")
    return path


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Load all weights or none: a missing, unexpected or misshapen key is an error that names it."""
    require_same_shapes(_shapes(weights), _shapes(model.state_dict()), where)
    model.load_state_dict(weights, assign=assign)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def load_model(
    folder: Path, name: WeightsName = "ema", device: torch.device | str = "cpu"
) -> tuple[Transformer, ModelSpec]:
    """The model in evaluation mode, and what it needs to be used."""
    spec = load_spec(folder)
    shapes = read_shapes(_weights_file(folder, name))
    blocks = count_blocks(shapes)
    if blocks != spec.model.depth:  # before so many are built
        raise UserError(
            f"{folder}: config.json says model.depth {spec.model.depth}, its weights have {blocks} blocks"
        )
    with torch.device("meta"):  # nothing is drawn only to be overwritten
        model = Transformer(spec.model)
    require_same_shapes(shapes, _shapes(model.state_dict()), str(folder))  # before memory is taken
    weights = {key: value.float() for key, value in load_weights(folder, name).items()}  # some are float16
    load_strictly(model, weights, str(folder), assign=True)
    if spec.model.position_embedding != "learnable":
        model.fill_positions()
    return model.to(device).eval().requires_grad_(False), spec


def load_parts(
    folder: Path, name: WeightsName, device: torch.device | str, autoencoder: str
) -> tuple[Transformer, ModelSpec, Codec, Tokenizer | None]:
    """All that a model folder holds for generation; `autoencoder` as in `open_model_codec`."""
    model, spec = load_model(folder, name, device)
    codec = open_model_codec(folder, spec, autoencoder).to(device)
    return model, spec, codec, load_tokenizer(folder, spec)


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


def read_latest(path: Path, read: Callable[[Path], T]) -> tuple[T, Path]:
    """What is read of the latest model of `path`, and its folder. Where a run that is training removes that
    checkpoint meanwhile, having written another, it is the newest one that counts."""
    while True:
        folder = latest_model(path)
        try:
            return read(folder), folder
        except (UserError, OSError):
            if folder.is_dir() or folder == path:
                raise
