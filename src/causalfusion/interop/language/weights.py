"""The names of a language model's weights, theirs and ours, and in what order their numbers stand."""

from __future__ import annotations

from collections.abc import Collection

from causalfusion.config import ModelConfig
from causalfusion.interop.systems.links import Link, blocks, joined, module, rename

_LEFT_OUT = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of the names of tables that old checkpoints store, and that are computed anew."""


def language_links(family: str, model: ModelConfig) -> list[Link]:
    """The links of all weights of a language model, in the names of `transformers`."""
    return _gpt2_links(model) if family == "gpt2" else _gated_links(model)


def is_left_out(name: str) -> bool:
    """True for a stored table that is no weight."""
    return name.endswith(_LEFT_OUT)


def theirs_of(name: str, known: Collection[str]) -> str:
    """Their full name of a weight; published GPT-2 files leave the prefix out."""
    return name if name in known or f"transformer.{name}" not in known else f"transformer.{name}"


def _gated_links(model: ModelConfig) -> list[Link]:
    queries, keys = model.query_size, model.kv_heads * model.head_dim
    projections = [f"{{theirs}}.self_attn.{part}_proj" for part in "qkv"]

    def of_block(_: str) -> list[Link]:
        links = [
            joined(
                f"{{ours}}.attn.qkv.{part}", [f"{name}.{part}" for name in projections], [queries, keys, keys]
            )
            for part in ("weight", "bias")[: 1 + model.bias.qkv]
        ]
        links += module("{ours}.attn.proj", "{theirs}.self_attn.o_proj", bias=model.bias.attention)
        for ours, theirs in (("gate", "gate"), ("fc1", "up"), ("fc2", "down")):
            links += module(f"{{ours}}.mlp.{ours}", f"{{theirs}}.mlp.{theirs}_proj", bias=model.bias.mlp)
        links += module("{ours}.norm1", "{theirs}.input_layernorm", bias=False)
        links += module("{ours}.norm2", "{theirs}.post_attention_layernorm", bias=False)
        if model.qk_norm.kind != "none":
            links += module("{ours}.attn.q_norm", "{theirs}.self_attn.q_norm", bias=False)
            links += module("{ours}.attn.k_norm", "{theirs}.self_attn.k_norm", bias=False)
        return links

    return [
        rename("text_embedding.weight", "model.embed_tokens.weight"),
        *blocks(model.depth, of_block, "blocks.#", "model.layers.#"),
        rename("norm_out.weight", "model.norm.weight"),
        *_head(model),
    ]


def _gpt2_links(model: ModelConfig) -> list[Link]:
    def of_block(_: str) -> list[Link]:
        links: list[Link] = []
        for ours, theirs in (
            ("attn.qkv", "attn.c_attn"),
            ("attn.proj", "attn.c_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            links.append(_transposed(f"{{ours}}.{ours}.weight", f"{{theirs}}.{theirs}.weight"))
            links.append(rename(f"{{ours}}.{ours}.bias", f"{{theirs}}.{theirs}.bias"))
        return links + module("{ours}.norm1", "{theirs}.ln_1") + module("{ours}.norm2", "{theirs}.ln_2")

    return [
        rename("text_embedding.weight", "transformer.wte.weight"),
        rename("text_position.weight", "transformer.wpe.weight"),
        *blocks(model.depth, of_block, "blocks.#", "transformer.h.#"),
        *module("norm_out", "transformer.ln_f"),
        *_head(model),
    ]


def _head(model: ModelConfig) -> list[Link]:
    return [] if model.language.tied else [rename("text_out.weight", "lm_head.weight")]


def _transposed(ours: str, theirs: str) -> Link:
    """GPT-2 stores its matrices as (inputs, outputs)."""
    return Link((ours,), (theirs,), lambda t: [t[0].T], lambda t: [t[0].T])
