"""Which weights of a model are of its text, and which are hidden matrices."""

from __future__ import annotations

from torch import Tensor


def is_of_text(name: str) -> bool:
    """True for a weight that text tokens use: of a language model, one that it had before it drew."""
    if name.startswith(("text_", "norm_out.")):
        return True
    parts = name.split(".")
    return parts[0] == "blocks" and parts[2] != "image" and not parts[-1].startswith("lora_")


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """True for a matrix inside a block, of attention or of a feed-forward network, of the transformer, its
    encoder or the per-token head. Queries, keys and values are one matrix. Not one: embeddings, first and
    last layers, modulation, tables, and low-rank additions."""
    parts = name.split(".")
    inside = "blocks" in parts and ("attn" in parts or "mlp" in parts)
    return inside and parts[-1] == "weight" and weight.ndim == 2
