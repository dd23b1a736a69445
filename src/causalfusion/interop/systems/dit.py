"""DiT (2212.09748) and SiT (2401.08740): the same network, DDPM with learned variances or a straight path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from causalfusion.config import (
    BiasConfig,
    DiffusionConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    SampleConfig,
)
from causalfusion.interop.systems.links import (
    Link,
    blocks,
    mean_then_variance,
    module,
    rename,
    reordered,
)
from causalfusion.interop.systems.released import Released, Shapes
from causalfusion.model.positions import sincos_positions

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the released S, B, L and XL, by width."""
FLOW = DiffusionConfig(
    path="rectified_flow", prediction_type="velocity", timestep_scale=1.0, timestep_from="noise"
)


def read_dit(state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    """DiT: ε and variances, DDPM with linear β."""
    model, links, patch_size = _network(Shapes(state, settings, where), sign=1.0)
    variance = "learned_range" if model.predicts_variance else "fixed"
    sampling = SampleConfig(diffusion_steps=[250], guidance_scale=1.5, guided_channels=3)
    return Released(model, DiffusionConfig(variance=variance), links, patch_size, sampling)


def read_sit(state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    """SiT: the velocity of the straight path. Its time runs from noise to data, so its velocity is the
    opposite of ours; half of a twofold output is left out, as its forward pass does."""
    model, links, patch_size = _network(Shapes(state, settings, where), sign=-1.0)
    sampling = SampleConfig(sampler="sde", diffusion_steps=[250], guidance_scale=1.5, guided_channels=3)
    return Released(model, FLOW, links, patch_size, sampling)


def _network(s: Shapes, sign: float) -> tuple[ModelConfig, list[Link], int]:
    """`sign` -1: the output is negated, and has no variances."""
    size, channels, patch, _ = s.shape("x_embedder.proj.weight", 4)
    grid = s.side(s.shape("pos_embed", 3)[1])
    outputs, token_dim = s.shape("final_layer.linear.weight", 2)[0], channels * patch**2
    twofold, depth = outputs == 2 * token_dim, s.depth("blocks")
    norm, mlp_hidden = NormConfig(eps=1e-6), s.shape("blocks.0.mlp.fc1.weight", 2)[0]
    fixed = bool((s.state["pos_embed"][0].float() - sincos_positions(size, grid, grid)).abs().max() <= 1e-6)
    model = ModelConfig(
        hidden_size=size,
        depth=depth,
        num_heads=s.heads("num_heads", size, HEADS),
        mlp_hidden=mlp_hidden,
        norm=norm,
        out_norm=norm,
        qk_norm=QKNormConfig(kind="none"),
        bias=BiasConfig(qkv=True),
        position_embedding="sincos" if fixed else "learnable",
        conditioning="adaln_zero",
        num_classes=s.shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        token_dim=token_dim,
        predicts_variance=twofold and sign > 0,
        grid_height=grid,
        grid_width=grid,
    )
    return model, network_links(model, channels, patch, outputs, sign), patch


def network_links(model: ModelConfig, channels: int, patch: int, outputs: int, sign: float) -> list[Link]:
    """Links of the weights of a network with `outputs` rows in its last layer."""
    twofold = outputs == 2 * model.token_dim
    order = mean_then_variance(channels, patch)[: model.prediction_dim] if twofold else None
    return [
        Link(
            ("image_in.weight",),
            ("x_embedder.proj.weight",),
            lambda t: [t[0].permute(0, 2, 3, 1).flatten(1)],
            lambda t: [t[0].unflatten(1, (patch, patch, channels)).permute(0, 3, 1, 2)],
        ),
        rename("image_in.bias", "x_embedder.proj.bias"),
        rename("class_embedding.weight", "y_embedder.embedding_table.weight"),
        *module("timestep_embedding.fc1", "t_embedder.mlp.0"),
        *module("timestep_embedding.fc2", "t_embedder.mlp.2"),
        *blocks(model.depth, _block, "blocks.#", "blocks.#"),
        *module("modulation_out", "final_layer.adaLN_modulation.1"),
        *out_links(order, outputs, sign),
        positions_link(model, "pos_embed"),
    ]


def _block(_: str) -> list[Link]:
    links = module("{ours}.modulation", "{theirs}.adaLN_modulation.1")
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        links += module("{ours}." + name, "{theirs}." + name)
    return links


def out_links(order: Tensor | None, outputs: int, sign: float, *, bias: bool = True) -> list[Link]:
    """The final layer, its rows in `order` (None: as they are) and times `sign`."""
    index = torch.arange(outputs) if order is None else order
    return [
        reordered(f"image_out.{part}", f"final_layer.linear.{part}", index, outputs, sign=sign)
        for part in ("weight", "bias")[: 1 + bias]
    ]


def positions_link(model: ModelConfig, theirs: str) -> Link:
    """A stored table (1, L, D): ours if it is learned, else computed anew."""
    if model.position_embedding == "learnable":
        return Link(("image_position",), (theirs,), lambda t: [t[0][0]], lambda t: [t[0][None]])
    return Link((), (theirs,), lambda t: [], lambda t: [])
