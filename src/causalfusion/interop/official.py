"""Converting released checkpoints: weights under our names, and a configuration inferred from their shapes.

Shape letters: L image tokens, C class tokens, D width, P token dimension.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causalfusion.config import CodecConfig, ModelConfig
from causalfusion.errors import UserError
from causalfusion.interop.official_file import OfficialFile, read_official
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.positions import sincos_positions
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec

POSITION = "pos_embed"
CLASS_TABLE = "y_embedder.embedding_table.weight"
_OFFICIAL_NAMES = {
    "image_position": POSITION,
    "class_embedding.position": "cond_pos_embed",
    "class_embedding.table.weight": CLASS_TABLE,
}
_OFFICIAL_MODULES = {
    "image_in": "x_proj",
    "timestep_embedding.fc1": "t_embedder.mlp.0",
    "timestep_embedding.fc2": "t_embedder.mlp.2",
    "norm_out": "final_layer.0",
    "image_out": "final_layer.1",
}
"""Modules that have another name; all others, those of the blocks, have the same name in both."""

_AUTOENCODERS = {16: ("kl16.ckpt", 0.2325, 16), 4: ("stabilityai/sd-vae-ft-ema", 0.18215, 8)}
"""(placeholder path if none is given, scale, downsampling factor) by number of latent channels."""


class Converted(NamedTuple):
    spec: ModelSpec
    ema: dict[str, Tensor]
    """The weights for generation: the EMA if the checkpoint has one."""
    raw: dict[str, Tensor] | None
    """The raw weights, if the checkpoint has both."""
    notes: list[str]
    """Assumptions that were made, one line each, for the user."""


def official_name(name: str) -> str:
    """The name in the released code of one of our weights."""
    module, _, parameter = name.rpartition(".")
    if module in _OFFICIAL_MODULES:
        return f"{_OFFICIAL_MODULES[module]}.{parameter}"
    return _OFFICIAL_NAMES.get(name, name)


def convert_official(path: Path, *, autoencoder: str = "", patch_size: int = 0) -> Converted:
    """Read a released checkpoint: a dict with `ema` and `model`, or a bare state dict, .pt or .safetensors.

    `autoencoder` is the path of the one that made its latents. `patch_size` is needed only if neither the
    settings in the checkpoint nor the token dimension determine it (0: not given). Raises UserError for
    anything else than such a checkpoint, naming a weight that is missing, unknown or of another shape.
    """
    file = read_official(path)
    file.require_finite(path)
    states = file.states
    # An EMA of the frozen table drifts by rounding. The weights were evaluated with the stored table, so it
    # is replaced by ours only if every copy equals ours.
    learnable = any(infer_config(state, str(path)).position_embedding == "learnable" for state in states)
    num_classes = _positive_int(file.settings, "num_classes")
    converted = [
        convert_state_dict(state, str(path), num_classes=num_classes, learnable_positions=learnable)
        for state in states
    ]
    config = converted[0][0]
    if any(other != config for other, _ in converted):
        raise UserError(
            f"{path}: its ema and model weights are of different sizes; the checkpoint is damaged"
        )
    codec, notes = infer_codec(config, file.settings, autoencoder=autoencoder, patch_size=patch_size)
    if states[0][CLASS_TABLE].shape[0] == config.num_classes:
        notes.append("trained without label dropout: the null class is zero, so guidance has no meaning")
    spec = ModelSpec(model=config, codec=codec, images_seen=_images_seen(file), origin=_origin(path, file))
    return Converted(spec, converted[0][1], converted[1][1] if len(converted) > 1 else None, notes)


def convert_state_dict(
    official: Mapping[str, Tensor],
    where: str = "the state dict",
    *,
    num_classes: int | None = None,
    learnable_positions: bool | None = None,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """(configuration, float32 weights under our names). Raises UserError for a missing or unknown weight.

    `num_classes` tells whether the class table has a null row (None: it has one; a missing one is added as
    zeros). `learnable_positions` of None is decided by comparing them with the fixed table.
    """
    config = infer_config(official, where, num_classes=num_classes, learnable_positions=learnable_positions)
    with skeleton():
        expected = Transformer(config).state_dict()
    names = {official_name(name): name for name in expected}
    missing = sorted((names.keys() | {POSITION}) - official.keys())
    unknown = sorted(official.keys() - names.keys() - {POSITION})
    for word, keys in (("lacks weight", missing), ("has the unknown weight", unknown)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(
                f"{where} {word} {keys[0]}{more}; expected those of the released CausalFusion code"
            )
    weights = {}
    for key, name in names.items():
        value, shape = official[key].detach().float(), expected[name].shape
        if key in (POSITION, "cond_pos_embed"):
            value = value[0]
        if key == CLASS_TABLE and value.shape[0] == config.num_classes:
            value = torch.cat([value, value.new_zeros(1, value.shape[1])])
        if value.shape != shape:
            raise UserError(f"{where}: weight {key} has shape {tuple(value.shape)}, expected {tuple(shape)}")
        weights[name] = value
    return config, weights


def infer_config(
    official: Mapping[str, Tensor],
    where: str,
    *,
    num_classes: int | None = None,
    learnable_positions: bool | None = None,
) -> ModelConfig:
    """The configuration that the shapes of a released state dict imply; for the arguments see
    `convert_state_dict`. Raises UserError."""

    def shape(key: str, ndim: int) -> list[int]:
        if key not in official:
            raise UserError(f"{where} lacks weight {key}; expected those of the released CausalFusion code")
        sizes = list(official[key].shape)
        if len(sizes) != ndim or 0 in sizes:
            raise UserError(f"{where}: weight {key} has shape {tuple(sizes)}, expected {ndim} dimensions")
        return sizes

    hidden_size, token_dim = shape("x_proj.weight", 2)
    num_tokens = shape(POSITION, 3)[1]
    grid = math.isqrt(num_tokens)
    if grid * grid != num_tokens:
        raise UserError(f"{where}: pos_embed has {num_tokens} positions, expected those of a square grid")
    (head_dim,) = shape("blocks.0.attn.q_norm.weight", 1)
    if hidden_size % head_dim:
        raise UserError(f"{where}: head size {head_dim} does not divide the hidden size {hidden_size}")
    rows = shape(CLASS_TABLE, 2)[0]
    num_classes = rows - 1 if num_classes is None else num_classes
    if rows - num_classes not in (0, 1):
        raise UserError(f"{where}: {CLASS_TABLE} has {rows} rows, expected {num_classes} classes and null")
    if learnable_positions is None:
        learnable_positions = not _is_sincos(official[POSITION], hidden_size, grid)
    blocks = {match[1] for key in official if (match := re.match(r"blocks\.(\d+)\.", key))}
    return ModelConfig(
        hidden_size=hidden_size,
        depth=len(blocks),
        num_heads=hidden_size // head_dim,
        mlp_ratio=_mlp_ratio(hidden_size, shape("blocks.0.mlp.fc1.weight", 2)[0]),
        num_class_tokens=shape("cond_pos_embed", 3)[1],
        position_embedding="learnable" if learnable_positions else "sincos",
        num_classes=num_classes,
        token_dim=token_dim,
        grid_height=grid,
        grid_width=grid,
    )


def infer_codec(
    config: ModelConfig, settings: Mapping[str, Any], *, autoencoder: str = "", patch_size: int = 0
) -> tuple[CodecConfig, list[str]]:
    """(settings of the autoencoder with this number of latent channels, notes on assumptions).

    The patch size is the one given, else that in the checkpoint's settings, else the one with which the token
    dimension fits a known autoencoder: 16 = 1 x 1 x 16 channels rather than 2 x 2 x 4. Raises UserError if
    none fits.
    """
    notes = []
    patch = patch_size or _positive_int(settings, "patch_size") or 0
    channels = _positive_int(settings, "latent_channels")
    if not patch and channels:
        patch = math.isqrt(config.token_dim // channels)
    if not patch:
        fitting = [p for c in _AUTOENCODERS for p in (1, 2, 4) if p * p * c == config.token_dim]
        if not fitting:
            raise UserError(
                f"the patch size of {config.token_dim} numbers a token is not clear; give --patch-size"
            )
        patch = fitting[0]
        if len(fitting) > 1:
            notes.append(f"patch size {patch} assumed; give --patch-size for a model of 4-channel latents")
    channels, rest = divmod(config.token_dim, patch * patch)
    if rest or not channels:
        raise UserError(f"patch size is {patch}; expected one whose square divides {config.token_dim}")
    if channels not in _AUTOENCODERS:
        notes.append(
            f"no autoencoder with {channels} channels is known: set codec.scale and codec.downsample"
        )
    path, scale, _ = _AUTOENCODERS.get(channels, ("autoencoder", 1.0, 0))
    downsample = downsample_of(channels)
    if not autoencoder:
        notes.append(f"no autoencoder given: {path} stands for it in config.json; give --autoencoder PATH")
    codec = CodecConfig(
        autoencoder=autoencoder or path,
        patch_size=patch,
        scale=scale,
        image_height=config.grid_height * patch * downsample,
        image_width=config.grid_width * patch * downsample,
        image_channels=3,
        latent_channels=channels,
        downsample=downsample,
    )
    return codec, notes


def downsample_of(channels: int) -> int:
    """Pixels of a latent's side, of an autoencoder with so many channels; 8 where none is known."""
    return _AUTOENCODERS[channels][2] if channels in _AUTOENCODERS else 8


def _is_sincos(position: Tensor, hidden_size: int, grid: int) -> bool:
    if position.is_meta or hidden_size % 4 or position.shape[-1] != hidden_size:
        return False
    table = sincos_positions(hidden_size, grid, grid)
    return bool((position[0].float() - table).abs().max() <= 1e-6)


def _mlp_ratio(hidden_size: int, mlp_size: int) -> float:
    ratio = mlp_size / hidden_size
    # The model truncates hidden_size * ratio, which rounding may have made smaller than mlp_size.
    return ratio if int(hidden_size * ratio) == mlp_size else math.nextafter(ratio, math.inf)


def _positive_int(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _images_seen(file: OfficialFile) -> int:
    batch = _positive_int(file.settings, "global_batch_size") or _positive_int(file.settings, "batch_size")
    return file.train_steps * (batch or 0)


def _origin(path: Path, file: OfficialFile) -> str:
    steps = f", {file.train_steps} train steps" if file.train_steps else ""
    return f"released checkpoint {path.name}{steps}"
