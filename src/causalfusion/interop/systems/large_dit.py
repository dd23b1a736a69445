"""Large-DiT for ImageNet (Alpha-VLLM, LLaMA2-Accessory): LLaMA's blocks with full attention and
AdaLN-zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from causalfusion.interop.systems.dit import out_links
from causalfusion.interop.systems.links import (
    Link,
    blocks,
    channels_last,
    joined,
    mean_then_variance,
    module,
    rename,
    reordered,
)
from causalfusion.interop.systems.released import Released, Shapes

HEADS = {1536: 32, 3072: 32, 4096: 32}
"""Attention heads of the 600M, 3B and 7B models, by width."""


def read_large_dit(state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    """ε and variances, DDPM with linear β. No weight tells the size of the images: `input_size`, the side of
    the latents, is taken from the settings, else 32 (256 pixels)."""
    s = Shapes(state, settings, where)
    size, token_dim = s.shape("x_embedder.weight", 2)
    patch = s.number("patch_size", 2)
    channels, grid = token_dim // patch**2, s.number("input_size", 32) // patch
    heads, kv_size = s.heads("n_heads", size, HEADS), s.shape("layers.0.attention.wk.weight", 2)[0]
    outputs, depth = s.shape("final_layer.linear.weight", 2)[0], s.depth("layers")
    qk_norm = "layers.0.attention.q_norm.weight" in s
    model = ModelConfig(
        hidden_size=size,
        depth=depth,
        num_heads=heads,
        num_kv_heads=kv_size // (size // heads),
        mlp="swiglu",
        mlp_hidden=s.shape("layers.0.feed_forward.w1.weight", 2)[0],
        norm=NormConfig(kind="rms_norm", weight="learned", eps=float(settings.get("norm_eps", 1e-5))),
        out_norm=NormConfig(eps=1e-6),
        qk_norm=QKNormConfig(over="width", eps=1e-5) if qk_norm else QKNormConfig(kind="none"),
        bias=BiasConfig(attention=False, mlp=False),
        position_embedding="rope",
        rope=RopeConfig(base=10_000.0, axes="raster", pairs="interleaved"),
        conditioning="adaln_zero",
        adaln_size=s.shape("t_embedder.mlp.2.weight", 2)[0],
        num_classes=s.shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        token_dim=token_dim,
        predicts_variance=outputs == 2 * token_dim,
        grid_height=grid,
        grid_width=grid,
    )
    order = mean_then_variance(channels, patch) if model.predicts_variance else None
    links = [
        reordered("image_in.weight", "x_embedder.weight", channels_last(channels, patch), token_dim, dim=1),
        rename("image_in.bias", "x_embedder.bias"),
        rename("class_embedding.weight", "y_embedder.embedding_table.weight"),
        *module("timestep_embedding.fc1", "t_embedder.mlp.0"),
        *module("timestep_embedding.fc2", "t_embedder.mlp.2"),
        *blocks(depth, lambda _: _block(size, kv_size, qk_norm), "blocks.#", "layers.#"),
        *module("modulation_out", "final_layer.adaLN_modulation.1"),
        *out_links(order, outputs, 1.0),
    ]
    variance = "learned_range" if model.predicts_variance else "fixed"
    sampling = SampleConfig(diffusion_steps=[250], guidance_scale=4.0, guided_channels=3)
    return Released(model, DiffusionConfig(variance=variance), links, patch, sampling)


def _block(size: int, kv_size: int, qk_norm: bool) -> list[Link]:
    theirs = [f"{{theirs}}.attention.w{part}.weight" for part in "qkv"]
    links = [
        joined("{ours}.attn.qkv.weight", theirs, (size, kv_size, kv_size)),
        rename("{ours}.attn.proj.weight", "{theirs}.attention.wo.weight"),
        rename("{ours}.norm1.weight", "{theirs}.attention_norm.weight"),
        rename("{ours}.norm2.weight", "{theirs}.ffn_norm.weight"),
        rename("{ours}.mlp.gate.weight", "{theirs}.feed_forward.w1.weight"),
        rename("{ours}.mlp.fc1.weight", "{theirs}.feed_forward.w3.weight"),
        rename("{ours}.mlp.fc2.weight", "{theirs}.feed_forward.w2.weight"),
        *module("{ours}.modulation", "{theirs}.adaLN_modulation.1"),
    ]
    for name in ("q_norm", "k_norm") if qk_norm else ():
        links += module("{ours}.attn." + name, "{theirs}.attention." + name)
    return links
