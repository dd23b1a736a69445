"""FiTv2 (2410.13925), and FiT (2402.12376) with a full AdaLN: images of any size by rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from causalfusion.config import (
    BiasConfig,
    DiffusionConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    SampleConfig,
)
from causalfusion.errors import UserError
from causalfusion.interop.systems.dit import FLOW, out_links
from causalfusion.interop.systems.links import Link, blocks, channels_last, module, rename, reordered
from causalfusion.interop.systems.released import Released, Shapes

HEADS = {1152: 16, 2304: 24}
"""Attention heads of the released XL and 3B models, by width."""
Extrapolation = Literal["none", "linear", "ntk", "ntk_by_parts", "yarn", "ntk_pro1", "ntk_pro2"]
EXTRAPOLATIONS: dict[str, Extrapolation] = {
    "normal": "none",
    "linear": "linear",
    "ntk-aware": "ntk",
    "ntk-by-parts": "ntk_by_parts",
    "yarn": "yarn",
    "ntk-aware-pro1": "ntk_pro1",
    "ntk-aware-pro2": "ntk_pro2",
}
"""Their names of what is done on grids larger than that of training, and ours."""


def rope_of(settings: Mapping[str, Any], where: str, grid: int) -> RopeConfig:
    """Rotary positions by the settings of the released code; `grid`: side of the grid of training."""
    name = settings.get("custom_freqs", "normal")
    if name not in EXTRAPOLATIONS:
        raise UserError(f"{where}: its setting custom_freqs is {name!r}; known are {list(EXTRAPOLATIONS)}")
    return RopeConfig(
        base=float(settings.get("theta", 10_000.0)),
        pairs="interleaved",
        extrapolation=EXTRAPOLATIONS[name],
        per_axis=bool(settings.get("decouple", False)),
        trained_side=int(settings.get("ori_max_pe_len") or grid),
    )


def read_fit(state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    """The velocity of the straight path, whose time runs from noise to data there; or, of FiT, ε and
    variances. The grid of training follows from `context_size`, 256 tokens if it is not given."""
    s = Shapes(state, settings, where)
    size, token_dim = s.shape("x_embedder.proj.weight", 2)
    patch, tokens = s.number("patch_size", 2), s.number("context_size", 256)
    channels, grid = token_dim // patch**2, int(tokens**0.5)
    outputs, depth = s.shape("final_layer.linear.weight", 2)[0], s.depth("blocks")
    lora = "global_adaLN_modulation.1.weight" in s
    rank = s.shape("blocks.0.adaLN_modulation.1.weight", 2)[0] if lora else 0
    flow = bool(settings.get("use_sit", True))
    if not flow:
        raise UserError(f"{where} is a FiT with noise prediction; only those of the straight path are read")
    _require_known(settings, where)
    normed = bool(settings.get("q_norm", "layernorm"))
    norm = NormConfig(eps=1e-6)
    model = ModelConfig(
        hidden_size=size,
        depth=depth,
        num_heads=s.heads("num_heads", size, HEADS),
        mlp="swiglu",
        mlp_hidden=s.shape("blocks.0.mlp.fc1_g.weight", 2)[0],
        norm=norm,
        out_norm=norm,
        qk_norm=QKNormConfig(kind="layer_norm" if normed else "none", weight="none", eps=1e-6),
        bias=BiasConfig(qkv=True),
        position_embedding="rope",
        rope=rope_of(settings, where, grid),
        conditioning="adaln_zero",
        adaln_rank=rank,
        num_classes=s.shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        token_dim=token_dim,
        grid_height=grid,
        grid_width=grid,
    )
    order = channels_last(channels, patch)
    links = [
        reordered("image_in.weight", "x_embedder.proj.weight", order, token_dim, dim=1),
        rename("image_in.bias", "x_embedder.proj.bias"),
        rename("class_embedding.weight", "y_embedder.embedding_table.weight"),
        *module("timestep_embedding.fc1", "t_embedder.mlp.0"),
        *module("timestep_embedding.fc2", "t_embedder.mlp.2"),
        *blocks(depth, lambda _: _block(lora), "blocks.#", "blocks.#"),
        *(module("modulation", "global_adaLN_modulation.1") if lora else ()),
        *module("modulation_out", "final_layer.adaLN_modulation.1"),
        *out_links(order, outputs, -1.0),
    ]
    shift = float(settings.get("time_shifting") or 1.0)
    levels: dict[str, Any] = {"level_distribution": "logit_normal", "timestep_shift": shift}
    diffusion = DiffusionConfig(**{**vars(FLOW), **levels})
    sampling = SampleConfig(sampler="sde", diffusion_steps=[250], guidance_scale=1.5, guided_channels=3)
    return Released(model, diffusion, links, patch, sampling)


def _require_known(settings: Mapping[str, Any], where: str) -> None:
    """Raises UserError for settings that no weight tells, and that are not computed here."""
    norms = tuple(settings.get(name, "layernorm") or None for name in ("q_norm", "k_norm"))
    for name, value, fits, expected in (
        ("q_norm and k_norm", norms, set(norms) in ({"layernorm"}, {None}), "layernorm, or null, for both"),
        (
            "rel_pos_embed",
            settings.get("rel_pos_embed"),
            settings.get("rel_pos_embed") in (None, "rope"),
            "rope",
        ),
        ("add_rel_pe_to_v", True, not settings.get("add_rel_pe_to_v"), "false"),
    ):
        if not fits:
            raise UserError(f"{where}: its setting {name} is {value!r}; expected {expected}")


def _block(lora: bool) -> list[Link]:
    links = [
        *module("{ours}.attn.qkv", "{theirs}.attn.qkv"),
        *module("{ours}.attn.proj", "{theirs}.attn.proj"),
    ]
    for ours, theirs in (("gate", "fc1_g"), ("fc1", "fc1_x"), ("fc2", "fc2")):
        links += module("{ours}.mlp." + ours, "{theirs}.mlp." + theirs)
    if not lora:
        return links + module("{ours}.modulation", "{theirs}.adaLN_modulation.1")
    links += module("{ours}.modulation.0", "{theirs}.adaLN_modulation.1")
    return links + module("{ours}.modulation.1", "{theirs}.adaLN_modulation.2")
