"""DiT in diffusers' format: `DiTTransformer2DModel` to and from the names of its authors, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.interop.systems.dit import network_links, read_dit
from causalfusion.interop.systems.links import follow_back
from causalfusion.saved.folder import load_spec, load_weights
from causalfusion.weight_files import share_saved

FREQUENCIES_NOTE = (
    "diffusers divides the exponents of the timestep's frequencies by 127, DiT's own code and this project "
    "by 128; the weights are DiT's, so a model that was trained in diffusers itself would differ"
)
_SHARED = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_EMBEDDING = "norm1.emb."
_IN_EVERY_BLOCK = {
    "timestep_embedder.linear_1": "t_embedder.mlp.0",
    "timestep_embedder.linear_2": "t_embedder.mlp.2",
    "class_embedder.embedding_table": "y_embedder.embedding_table",
}
"""Layers of which each block has a copy there."""
_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def read_diffusers_dit(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the state dict under the names of DiT's authors, settings) of a folder with a transformer, or of a
    pipeline's folder with one in `transformer`. Raises UserError."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    inside = folder / "transformer" if (folder / "transformer" / "config.json").is_file() else folder
    if not (inside / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; expected a DiTTransformer2DModel in diffusers' format")
    try:
        config, _ = DiTTransformer2DModel.load_config(inside, return_unused_kwargs=True)
        kind = config.get("_class_name")
        if kind not in ("DiTTransformer2DModel", "Transformer2DModel"):
            raise UserError(f"{inside} is a {kind}; expected a DiTTransformer2DModel")
        model = DiTTransformer2DModel.from_pretrained(inside, local_files_only=True, low_cpu_mem_usage=False)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{inside} cannot be read as a DiTTransformer2DModel ({reason})") from error
    settings = {"num_heads": int(model.config["num_attention_heads"])}
    positions = model.pos_embed.pos_embed
    assert positions is not None, "this class always has a table"
    return to_authors(model.state_dict(), positions, str(inside)), settings


def to_authors(state: Mapping[str, Tensor], positions: Tensor, where: str) -> dict[str, Tensor]:
    """A state dict of diffusers, with its table of positions (1, L, D), under the names of DiT's authors.
    Raises UserError if copies of the embeddings differ, which DiT has only once, or a weight is missing."""
    theirs = {"pos_embed": positions.detach()}
    depth = 1 + max(
        (int(name.split(".")[1]) for name in state if name.startswith("transformer_b")), default=-1
    )
    for part in ("weight", "bias"):
        for ours, name in _SHARED.items():
            theirs[f"{name}.{part}"] = _weight(state, f"{ours}.{part}", where)
        for ours, name in _IN_EVERY_BLOCK.items():
            if part == "bias" and ours.endswith("table"):
                continue
            copies = [
                _weight(state, f"transformer_blocks.{number}.{_EMBEDDING}{ours}.{part}", where)
                for number in range(depth)
            ]
            if any(not torch.equal(copy, copies[0]) for copy in copies):
                raise UserError(
                    f"{where}: its blocks have different {ours}, which DiT shares among all; it cannot be "
                    "converted"
                )
            theirs[f"{name}.{part}"] = copies[0]
        for number in range(depth):
            there = f"transformer_blocks.{number}."
            qkv = [_weight(state, f"{there}attn1.to_{which}.{part}", where) for which in "qkv"]
            theirs[f"blocks.{number}.attn.qkv.{part}"] = torch.cat(qkv)
            for ours, name in _BLOCK.items():
                theirs[f"blocks.{number}.{name}.{part}"] = _weight(state, f"{there}{ours}.{part}", where)
    return theirs


def _weight(state: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in state:
        raise UserError(f"{where} lacks weight {name}; expected those of a DiT with biases")
    return state[name].detach()


def to_diffusers(theirs: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The inverse of `to_authors`."""
    state: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        for name, source in _SHARED.items():
            state[f"{name}.{part}"] = theirs[f"{source}.{part}"]
        for number in range(depth):
            there = f"transformer_blocks.{number}."
            for name, source in _IN_EVERY_BLOCK.items():
                if f"{source}.{part}" in theirs:
                    state[f"{there}{_EMBEDDING}{name}.{part}"] = theirs[f"{source}.{part}"]
            qkv = theirs[f"blocks.{number}.attn.qkv.{part}"].chunk(3)
            state |= {
                f"{there}attn1.to_{which}.{part}": value for which, value in zip("qkv", qkv, strict=True)
            }
            for name, source in _BLOCK.items():
                state[f"{there}{name}.{part}"] = theirs[f"blocks.{number}.{source}.{part}"]
    return state


def write_diffusers(model: Path, out: Path) -> str:
    """Write a model folder with a DiT as a `DiTTransformer2DModel`. Returns a line on what it is. Raises
    UserError for any other model."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    spec, weights = load_spec(model), load_weights(model)
    config, patch = spec.model, spec.codec.patch_size
    channels = config.token_dim // patch**2
    if config.conditioning != "adaln_zero" or config.per_token or spec.diffusion.path != "ddpm":
        raise UserError(f"{model} is not a DiT; only those can be written in diffusers' format")
    links = network_links(config, channels, patch, config.prediction_dim, 1.0)
    theirs = follow_back(links, weights)
    theirs["pos_embed"] = _positions(config.grid_height, config.grid_width, config.hidden_size)
    missing = [name for link in links if link.ours for name in link.theirs if name not in theirs]
    again = None if missing else read_dit(theirs, {"num_heads": config.num_heads}, str(model)).model
    # A file of DiT's tells the width of its MLP's hidden layer, a recipe of ours its ratio.
    if again is None or again != replace(config, mlp_hidden=config.mlp_size, mlp_ratio=again.mlp_ratio):
        raise UserError(
            f"{model} has parts that a DiT does not have; only a DiT can be written in diffusers' format"
        )
    written = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=channels,
        out_channels=config.prediction_dim // patch**2,
        num_layers=config.depth,
        sample_size=config.grid_width * patch,
        patch_size=patch,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=config.norm.eps,
    )
    try:
        written.load_state_dict(to_diffusers(theirs, config.depth))
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[-1].strip()
        raise UserError(f"{model} does not fit diffusers' DiT: {reason}") from error
    written.save_pretrained(out)
    share_saved(out)
    return f"{out}: DiTTransformer2DModel, {config.depth} layers of width {config.hidden_size}"


def _positions(rows: int, columns: int, size: int) -> Tensor:
    from causalfusion.model.positions import sincos_positions

    return sincos_positions(size, rows, columns)[None]
