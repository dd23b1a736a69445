"""Language models in GGUF files, of llama.cpp: names, layouts and settings as `transformers` has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.interop.language.gguf_tokenizer import gguf_tokenizer, tokenizer_settings
from causalfusion.interop.language.source import LanguageSource, Stored

KINDS = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
"""`general.architecture` of files that can be read, with the `model_type` of their settings."""
_GATED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.#.attn_norm": "model.layers.#.input_layernorm",
    "blk.#.ffn_norm": "model.layers.#.post_attention_layernorm",
    "blk.#.attn_q": "model.layers.#.self_attn.q_proj",
    "blk.#.attn_k": "model.layers.#.self_attn.k_proj",
    "blk.#.attn_v": "model.layers.#.self_attn.v_proj",
    "blk.#.attn_output": "model.layers.#.self_attn.o_proj",
    "blk.#.attn_q_norm": "model.layers.#.self_attn.q_norm",
    "blk.#.attn_k_norm": "model.layers.#.self_attn.k_norm",
    "blk.#.ffn_gate": "model.layers.#.mlp.gate_proj",
    "blk.#.ffn_up": "model.layers.#.mlp.up_proj",
    "blk.#.ffn_down": "model.layers.#.mlp.down_proj",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.#.attn_norm": "transformer.h.#.ln_1",
    "blk.#.ffn_norm": "transformer.h.#.ln_2",
    "blk.#.attn_qkv": "transformer.h.#.attn.c_attn",
    "blk.#.attn_output": "transformer.h.#.attn.c_proj",
    "blk.#.ffn_up": "transformer.h.#.mlp.c_fc",
    "blk.#.ffn_down": "transformer.h.#.mlp.c_proj",
}
_FREQUENCIES = "rope_freqs.weight"
"""Divisors of the rotary frequencies, of a model with Llama 3's scaling."""


def open_gguf(path: Path) -> LanguageSource:
    """Raises UserError for a file that is missing, damaged, one of several parts, or of a kind that cannot be
    read, and where the package gguf is missing."""
    gguf = _package()
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a .gguf file")
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError, TypeError) as error:
        raise UserError(f"{path} is not a GGUF file ({error}); it is damaged or of another kind") from None
    kind, parts = values.get("general.architecture"), values.get("split.count", 1)
    if kind not in KINDS:
        raise UserError(
            f"{path}: its architecture is {kind!r}; those that can be read from GGUF are {', '.join(KINDS)}"
        )
    if parts > 1:
        raise UserError(f"{path} is one of {parts} parts; merge them: llama-gguf-split --merge")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _require_known_types(gguf, tensors, str(path))
    config = _settings(kind, values, tensors, str(path))
    heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    try:
        weights = {
            _their_name(name, kind): _stored(gguf, tensor, _layout(name, kind, heads))
            for name, tensor in tensors.items()
            if name != _FREQUENCIES
        }
    except RuntimeError as error:  # rows that are not those of so many heads
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: queries or keys do not fit its numbers of heads ({reason})") from None
    settings = tokenizer_settings(values)
    files = {
        "config.json": config,
        "tokenizer_config.json": settings,
        "generation_config.json": _ends(values),
    }
    return LanguageSource(
        str(path),
        config,
        weights,
        1,
        gguf_tokenizer(values, str(path)),
        {name: json.dumps(content, indent=2).encode() for name, content in files.items()},
    )


def _package() -> Any:
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("GGUF files need the package gguf; install it: pip install gguf") from None
    return gguf


def _require_known_types(gguf: Any, tensors: Mapping[str, Any], where: str) -> None:
    for kind, tensor in {tensor.tensor_type: tensor for tensor in tensors.values()}.items():
        try:
            gguf.dequantize(tensor.data[:1], kind)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{where}: {tensor.name} is stored as {kind.name}, which the package gguf does not read "
                f"({error}); take a file of another quantisation, such as Q8_0"
            ) from None


def _settings(kind: str, values: Mapping[str, Any], tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config.json that the file's values amount to."""

    def value(name: str, default: Any = None) -> Any:
        return values.get(f"{kind}.{name}", default)

    if "token_embd.weight" not in tensors:
        raise UserError(f"{where} lacks the weight token_embd.weight; it is no complete model")
    common = {
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }
    if kind == "gpt2":
        return common | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": value("embedding_length"),
            "n_layer": value("block_count"),
            "n_head": value("attention.head_count"),
            "n_inner": value("feed_forward_length"),
            "n_positions": value("context_length"),
            "layer_norm_epsilon": value("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new",
        }
    heads, width = value("attention.head_count"), value("embedding_length")
    keys = value("attention.head_count_kv", heads)
    for key, count in (("attention.head_count", heads), ("attention.head_count_kv", keys)):
        if not isinstance(count, int) or count < 1:
            raise UserError(
                f"{where}: {kind}.{key} is {count!r}; expected a whole number of at least 1, one for all "
                "layers"
            )
    window = value("attention.sliding_window") or None
    name = "mistral" if kind == "llama" and window else KINDS[kind]
    size = value("attention.key_length", width // heads if isinstance(width, int) else None)
    if value("rope.dimension_count", size) != size:
        turned = value("rope.dimension_count")
        raise UserError(f"{where}: {turned} of {size} numbers of a head turn; only whole heads can be read")
    return common | {
        "model_type": name,
        "architectures": [f"{name.capitalize()}ForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": size,
        "intermediate_size": value("feed_forward_length"),
        "hidden_act": "silu",
        "max_position_embeddings": value("context_length"),
        "sliding_window": window,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "attention_bias": kind == "llama" and "blk.0.attn_q.bias" in tensors,
        "rope_parameters": _rope(value, tensors),
    }


def _rope(value: Callable[..., Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    base, kind = {"rope_theta": value("rope.freq_base", 10_000.0)}, value("rope.scaling.type", "none")
    longest = value("context_length")
    if _FREQUENCIES in tensors:  # Llama 3's scaling, as a divisor for each frequency
        divisors = np.array(tensors[_FREQUENCIES].data, dtype=np.float32).tolist()
        return base | {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": longest,
        }
    if kind in ("none", None):
        return base | {"rope_type": "default"}
    table = base | {"rope_type": kind, "factor": value("rope.scaling.factor")}
    trained, attention = value("rope.scaling.original_context_length"), value("rope.scaling.attn_factor")
    if trained is not None:
        table["original_max_position_embeddings"] = trained
    if attention is not None:
        table["attention_factor"] = attention
    return table


def _ends(values: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json: tokens that begin and end a text; a chat's turns may end by another."""
    ends = [
        values[f"tokenizer.ggml.{name}_token_id"]
        for name in ("eos", "eot")
        if values.get(f"tokenizer.ggml.{name}_token_id") is not None
    ]
    return {
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(ends)),
    }


def _their_name(name: str, kind: str) -> str:
    stem, _, part = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", stem)
    generic = re.sub(r"\.\d+\.", ".#.", stem)
    found = (_GPT2 if kind == "gpt2" else _GATED).get(generic)
    if found is None:
        return name
    return f"{found.replace('#', number[1] if number else '#')}.{part}"


Layout = Callable[[Tensor], Tensor]


def _layout(name: str, kind: str, heads: tuple[Any, Any]) -> Layout:
    """From the file's layout to that of `transformers`."""
    if kind == "gpt2" and name.startswith("blk.") and name.endswith(".weight") and "norm" not in name:
        return lambda x: x.T
    for part, count in zip(("attn_q.", "attn_k."), heads, strict=True):
        if kind == "llama" and part in name:
            return lambda x: _halves(x, count)
    return lambda x: x


def _halves(x: Tensor, heads: int) -> Tensor:
    """Rows (N * H, ...) of queries or keys of which neighbours turn together, ordered so that halves do."""
    return x.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _stored(gguf: Any, tensor: Any, layout: Layout) -> Stored:
    types = gguf.GGMLQuantizationType
    dtype = {types.F16: torch.float16, types.BF16: torch.bfloat16}.get(tensor.tensor_type, torch.float32)
    stored = tuple(int(size) for size in reversed(tensor.shape))

    def read() -> Tensor:
        if dtype == torch.bfloat16:
            return layout(torch.from_numpy(np.array(tensor.data)).view(dtype).view(stored)).contiguous()
        numbers = tensor.data if dtype == torch.float16 else gguf.dequantize(tensor.data, tensor.tensor_type)
        return layout(torch.from_numpy(np.array(numbers)).to(dtype).view(stored)).contiguous()

    shape = tuple(layout(torch.empty(stored, device="meta")).shape)
    return Stored(shape, dtype, read)
