"""A model on disk: a folder with `config.json` and `model.safetensors`, complete and ready to publish.

`model.safetensors` holds the weights for generation (the EMA after training); a training checkpoint may also
hold the raw ones in `raw.safetensors`. Weights load strictly.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from causalfusion.codec.autoencoder import fingerprint, save_autoencoder
from causalfusion.codec.codec import Codec, open_codec
from causalfusion.codec.language_tokenizer import drawing_tokenizer
from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.codec.tokenizer import LANGUAGE_FOLDER, Tokenizer, check_fits, open_tokenizer
from causalfusion.config import (
    CodecConfig,
    DiffusionConfig,
    FactorizationConfig,
    ModelConfig,
    SampleConfig,
    TextConfig,
)
from causalfusion.config.serialize import from_dict, read_json, to_dict, to_toml
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.transformer import Transformer
from causalfusion.saved.earlier_formats import EARLIER, bring_forward
from causalfusion.saved.hub import model_of_hub
from causalfusion.saved.replace import replace_folder
from causalfusion.saved.started import AUTOENCODER_FOLDER, autoencoder_place
from causalfusion.weight_files import count_blocks, read_shapes, read_weights, require_same_shapes, save_file

T = TypeVar("T")
FORMAT = "causalfusion-6"
SAMPLING_FILE = "sample.toml"
"""File in a model folder with recommended sampling settings, which the user's settings override."""
CLASSIFIER_FILE = "classifier.safetensors"
"""File in a model folder with the weights of a classifier beside the model."""
WeightsName = Literal["ema", "raw"]
_FILES: dict[WeightsName, str] = {"ema": "model.safetensors", "raw": "raw.safetensors"}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that generation needs to know about a model, except its weights."""

    model: ModelConfig
    codec: CodecConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    """AR steps in training; generation does not depend on them."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text in training; generation has to use the same `image_context`."""
    tokenizer_fingerprint: str = ""
    """Fingerprint of the tokenizer in the folder; empty for a model without text."""
    autoencoder_fingerprint: str = ""
    """Hash of the weights of the autoencoder used in training; empty for pixels, or unknown."""
    class_names: list[str] = field(default_factory=list)
    class_dropout: float | None = None
    """Probability with which training replaced the class by the null class, which guidance needs; 0: the null
    class is untrained; None: unknown."""
    images_seen: int = 0
    origin: str = ""
    """Description of where the weights come from."""


def save_model(
    folder: Path,
    spec: ModelSpec,
    weights: dict[str, Tensor] | None,
    raw: dict[str, Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
    autoencoder: Any = None,
    sampling: SampleConfig | None = None,
) -> None:
    """Write a model folder, including the autoencoder, the tokenizer and the recommended sampling that are
    given; without weights, all but them. Not atomic: callers that need that write to a temporary folder and
    rename it."""
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        save_autoencoder(autoencoder, folder / AUTOENCODER_FOLDER)
        codec = replace(spec.codec, autoencoder=AUTOENCODER_FOLDER)
        spec = replace(spec, codec=codec, autoencoder_fingerprint=fingerprint(autoencoder))
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
        for name, content in tokenizer.language_files.items():
            (folder / LANGUAGE_FOLDER).mkdir(exist_ok=True)
            (folder / LANGUAGE_FOLDER / name).write_bytes(content)
        spec = replace(spec, tokenizer_fingerprint=tokenizer.fingerprint)
    states: dict[WeightsName, dict[str, Tensor] | None] = {"ema": weights, "raw": raw}
    for name, state in states.items():
        if state is not None:
            save_file(state, folder / _FILES[name])
    if sampling is not None:
        sampling = make_process(spec.diffusion).settled(sampling)
        (folder / SAMPLING_FILE).write_text(to_toml(sampling), encoding="utf-8")
    save_spec(folder, spec)


def replace_model(
    folder: Path,
    spec: ModelSpec,
    weights: dict[str, Tensor],
    raw: dict[str, Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
    autoencoder: Any = None,
    sampling: SampleConfig | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Write a model folder atomically, with copies of those of the files and folders `beside` that exist,
    replacing a model of the same origin that is there. Raises UserError if the folder holds anything else,
    or cannot be written."""
    made = (spec, weights, raw, tokenizer, autoencoder, sampling)
    replace_folder(folder, lambda new: save_model(new, *made), beside=beside, origin=spec.origin)


def save_spec(folder: Path, spec: ModelSpec) -> None:
    """Write the settings of a model folder."""
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, **to_dict(spec)}, indent=2) + "\n")


def load_spec(folder: Path) -> ModelSpec:
    """The settings of a model folder. Raises UserError."""
    return read_spec(folder)[0]


def read_spec(folder: Path) -> tuple[ModelSpec, list[str]]:
    """(settings of a model folder, the settings that its earlier format lacked and that were filled in). In
    the current format, every key is required. Raises UserError."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model: no config.json there; give a folder made by train or convert"
        )
    return parse_spec(read_json(path, "model"), path)


def parse_spec(values: Any, path: Path | str) -> tuple[ModelSpec, list[str]]:
    """`read_spec` of the content of a config.json, which came from `path`."""
    if not isinstance(values, dict) or values.get("format") not in (FORMAT, *EARLIER):
        raise UserError(
            f"{path} is not in a format from {EARLIER[-1]} to {FORMAT}; give a folder made by train or "
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
    """The tokenizer of a model folder; None without text. Raises UserError if it is not that of training."""
    if not spec.model.vocab_size:
        return None
    if spec.model.language.markers == "own":
        tokenizer = drawing_tokenizer(folder, spec.model.text_vocab_size)
    else:
        tokenizer = open_tokenizer(str(folder))
    check_fits(tokenizer, spec.model.vocab_size, str(folder))
    if tokenizer.fingerprint != spec.tokenizer_fingerprint:
        raise UserError(
            f"{folder / TOKENIZER_FILE} is not the tokenizer that the model was trained with (fingerprint "
            f"{tokenizer.fingerprint}, expected {spec.tokenizer_fingerprint}); put that one back"
        )
    return tokenizer


def open_model_codec(folder: Path, spec: ModelSpec, autoencoder: str = "") -> Codec:
    """The codec of a model folder. Its autoencoder is the one that is given, else the one in the folder, else
    the one at the path recorded in training. Raises UserError if its weights are not those of training."""
    if spec.model.text_only:
        raise UserError(
            f"{folder} is a language model without images, which only completes texts: causalfusion "
            "complete, or LanguagePipeline"
        )
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
    place = autoencoder or autoencoder_place(folder, spec.codec.autoencoder)
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
    """(rows of tokens, columns of tokens, numbers in a token)."""
    return of.grid_height, of.grid_width, of.token_dim


def load_weights(folder: Path, name: WeightsName = "ema") -> dict[str, Tensor]:
    """The weights as they are stored. Raises UserError if they are missing, damaged or not finite."""
    return read_weights(_weights_file(folder, name))


def _weights_file(folder: Path, name: WeightsName) -> Path:
    path = folder / _FILES[name]
    if not path.is_file():
        raise UserError(f"{folder} has no {_FILES[name]}; it holds no {name} weights")
    return path


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Load all weights. Raises UserError, naming the weight, if one is missing, unexpected or of another
    shape."""
    require_same_shapes(_shapes(weights), _shapes(model.state_dict()), where)
    model.load_state_dict(weights, assign=assign)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def load_model(
    folder: Path, name: WeightsName = "ema", device: torch.device | str = "cpu"
) -> tuple[Transformer, ModelSpec]:
    """(model in evaluation mode, without gradients; its settings). Raises UserError."""
    spec = load_spec(folder)
    shapes = read_shapes(_weights_file(folder, name))
    blocks = count_blocks(shapes)
    if blocks != spec.model.depth:  # checked before the blocks are built
        raise UserError(
            f"{folder}: config.json says model.depth {spec.model.depth}, its weights have {blocks} blocks"
        )
    with skeleton():  # avoids drawing random weights only to overwrite them
        model = Transformer(spec.model)
    require_same_shapes(shapes, _shapes(model.state_dict()), str(folder))  # before memory is allocated
    weights = {key: value.float() for key, value in load_weights(folder, name).items()}  # may be float16
    load_strictly(model, weights, str(folder), assign=True)
    if spec.model.position_embedding != "learnable":
        model.fill_positions()
    return model.to(device).eval().requires_grad_(False), spec


def checkpoints_of(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    names = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(names, key=lambda p: int(p.name))


def packaged_models() -> dict[str, Path]:
    """The models that come with this package, by name."""
    folder = Path(str(resources.files("causalfusion") / "models"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def latest_model(path: Path) -> Path:
    """The model folder that a path means: itself, the last checkpoint of a run folder, the packaged model of
    this name, or that of the hub. What is on disk takes precedence. Raises UserError if there is none."""
    if (path / "config.json").is_file():
        return path
    if found := checkpoints_of(path):
        return found[-1]
    packaged = packaged_models()
    if elsewhere := packaged.get(str(path)) or model_of_hub(path):
        return elsewhere
    near = difflib.get_close_matches(str(path), packaged, 1)
    hint = f" (did you mean {near[0]}?)" if near else " (it does not exist)" * (not path.exists())
    raise UserError(
        f"{path} holds no model{hint}: expected a folder with config.json, a run with checkpoints, a name on "
        f"the hub (user/model), or one of the package ({', '.join(packaged) or 'it has none'})"
    )


def read_latest(path: Path, read: Callable[[Path], T]) -> tuple[T, Path]:
    """(result of `read` for the latest model of `path`, its folder). If a run that is training removes that
    checkpoint in the meantime, the newer one is read."""
    while True:
        folder = latest_model(path)
        try:
            return read(folder), folder
        except (UserError, OSError):
            if folder.is_dir() or folder == path:
                raise
