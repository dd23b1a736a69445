"""MAR (2406.11838): masked autoregression with an encoder, a decoder and a per-token head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from causalfusion.config import (
    BiasConfig,
    DiffusionConfig,
    EncoderConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    SampleConfig,
)
from causalfusion.interop.systems.links import Link, blocks, channels_last, module, rename, reordered
from causalfusion.interop.systems.released import Released, Shapes

HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads of the released B, L and H, by width."""
_NORM = NormConfig(eps=1e-6)
_NET = "diffloss.net"


def read_mar(state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    """ε and variances of each token, DDPM with the cosine schedule."""
    s = Shapes(state, settings, where)
    entry, token_dim = s.shape("z_proj.weight", 2)
    size = s.shape("mask_token", 3)[2]
    tokens = s.shape("diffusion_pos_embed_learned", 3)[1]
    buffer, grid = s.shape("encoder_pos_embed_learned", 3)[1] - tokens, s.side(tokens)
    patch, classes = s.number("patch_size", 1), s.shape("class_emb.weight", 2)[0]
    channels = token_dim // patch**2
    width, depths = (
        s.shape(f"{_NET}.input_proj.weight", 2)[0],
        (s.depth("encoder_blocks"), s.depth("decoder_blocks")),
    )
    outputs = s.shape(f"{_NET}.final_layer.linear.weight", 2)[0]
    mlp_ratio = s.shape("decoder_blocks.0.mlp.fc1.weight", 2)[0] / size
    model = ModelConfig(
        hidden_size=size, depth=depths[1], num_heads=s.heads("decoder_num_heads", size, HEADS), mlp="gelu",
        mlp_ratio=mlp_ratio, norm=_NORM, out_norm=_NORM, qk_norm=QKNormConfig(kind="none"),
        bias=BiasConfig(qkv=True), num_class_tokens=buffer, class_token_repeats=buffer, input_norm=True,
        dropout=0.1, attention_dropout=0.1, position_embedding="learnable", context="bidirectional",
        encoder=EncoderConfig(
            depth=depths[0], hidden_size=entry, num_heads=s.heads("encoder_num_heads", entry, HEADS)
        ),
        head=HeadConfig(
            kind="per_token", width=width, depth=s.depth(f"{_NET}.res_blocks"), norm=_NORM, positions=True
        ),
        num_classes=classes, token_dim=token_dim, predicts_variance=outputs == 2 * token_dim,
        grid_height=grid, grid_width=grid,
    )  # fmt: skip
    links = [
        *_entry_links(channels, patch, buffer, classes),
        *blocks(depths[0], _block, "encoder.blocks.#", "encoder_blocks.#"),
        *module("encoder.norm_out", "encoder_norm"),
        *module("encoder.proj", "decoder_embed"),
        _positions("encoder.class_position", "encoder.image_position", "decoder_pos_embed_learned", buffer),
        Link(("mask_token",), ("mask_token",), lambda t: [t[0][0, 0]], lambda t: [t[0][None, None]]),
        *blocks(depths[1], _block, "blocks.#", "decoder_blocks.#"),
        *module("norm_out", "decoder_norm"),
        Link(
            ("condition_position",),
            ("diffusion_pos_embed_learned",),
            lambda t: [t[0][0]],
            lambda t: [t[0][None]],
        ),
        *_head_links(channels, patch, model.head.depth, model.predicts_variance),
    ]
    sampling = SampleConfig(
        num_ar_steps=256 if tokens > 256 else 0, step_sizes="masked_cosine", diffusion_steps=[100],
        guidance_scale=3.0, guidance_schedule="masked_linear",
    )  # fmt: skip
    variance = "learned_range" if model.predicts_variance else "fixed"
    diffusion = DiffusionConfig(beta_schedule="cosine", variance=variance)
    return Released(model, diffusion, links, patch, sampling)


def _entry_links(channels: int, patch: int, buffer: int, classes: int) -> list[Link]:
    order = channels_last(channels, patch)
    return [
        reordered("image_in.weight", "z_proj.weight", order, len(order), dim=1),
        rename("image_in.bias", "z_proj.bias"),
        Link(
            ("class_embedding.table.weight",),
            ("class_emb.weight", "fake_latent"),
            lambda t: [torch.cat(t)],
            lambda t: [t[0][:classes], t[0][classes:]],
        ),
        _positions("class_embedding.position", "image_position", "encoder_pos_embed_learned", buffer),
        *module("norm_in", "z_proj_ln"),
    ]


def _positions(of_class: str, of_image: str, theirs: str, buffer: int) -> Link:
    """One table (1, buffer + L, D) of theirs is two of ours."""
    return Link(
        (of_class, of_image),
        (theirs,),
        lambda t: [t[0][0, :buffer], t[0][0, buffer:]],
        lambda t: [torch.cat(t)[None]],
    )


def _block(_: str) -> list[Link]:
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [link for name in names for link in module("{ours}." + name, "{theirs}." + name)]


def _head_links(channels: int, patch: int, depth: int, variances: bool) -> list[Link]:
    order = channels_last(channels, patch)
    outputs = torch.cat([order, order + len(order)]) if variances else order
    links = [
        reordered("head.token_in.weight", f"{_NET}.input_proj.weight", order, len(order), dim=1),
        rename("head.token_in.bias", f"{_NET}.input_proj.bias"),
        *module("head.condition_in", f"{_NET}.cond_embed"),
        *module("head.timestep_embedding.fc1", f"{_NET}.time_embed.mlp.0"),
        *module("head.timestep_embedding.fc2", f"{_NET}.time_embed.mlp.2"),
        *blocks(depth, _head_block, "head.blocks.#", f"{_NET}.res_blocks.#"),
        *module("head.modulation_out", f"{_NET}.final_layer.adaLN_modulation.1"),
    ]
    return links + [
        reordered(f"head.image_out.{p}", f"{_NET}.final_layer.linear.{p}", outputs, len(outputs))
        for p in ("weight", "bias")
    ]


def _head_block(_: str) -> list[Link]:
    names = {"norm": "in_ln", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "modulation": "adaLN_modulation.1"}
    return [link for ours, theirs in names.items() for link in module("{ours}." + ours, "{theirs}." + theirs)]
