"""The language models that can be read, from what their config.json says: as it has been published for years,
and as `transformers` 5 writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from causalfusion.config import (
    BiasConfig,
    LanguageConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    ScalingConfig,
)
from causalfusion.errors import UserError


class Settings:
    """A config.json, whose values are checked as they are read."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self._of(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._of(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._of(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def table(self, name: str) -> Settings:
        value = self._of(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a table")
        return Settings(value, f"{self.where}: {name}")

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self._of(name, None)
        if not isinstance(value, list) or not all(isinstance(n, int | float) for n in value):
            raise self.wrong(name, "a list of numbers")
        return tuple(map(float, value))

    def require(self, name: str, *allowed: object) -> None:
        """Refuse a setting that is neither left out nor one of these."""
        if self.values.get(name) is not None and self.values[name] not in allowed:
            raise self.wrong(name, " or ".join(map(str, allowed)))

    def _of(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def wrong(self, name: str, expected: str) -> UserError:
        if name not in self.values:
            return UserError(f"{self.where} lacks {name}; expected {expected}")
        return UserError(f"{self.where}: {name} is {self.values[name]!r}; expected {expected}")


@dataclass(frozen=True)
class Family:
    """A kind of language model: its settings, and the names of its weights."""

    name: str
    read: Callable[[Settings], ModelConfig]
    architecture: str
    """Its class in `transformers`."""


def read_family(values: Mapping[str, Any], where: str) -> tuple[Family, ModelConfig]:
    """The kind and the choices of a model from its config.json. Raises UserError for an unknown kind, and for
    a setting that is missing, or that this software does not compute."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        architectures = values.get("architectures")
        called = name or (architectures[0] if isinstance(architectures, list) and architectures else "none")
        raise UserError(
            f"{where}: its architecture is {called!r}; those that can be read are {', '.join(FAMILIES)} "
            "(LLaMA, SmolLM2 and TinyLlama are llama)"
        )
    family = FAMILIES[name]
    return family, family.read(Settings(values, where))


def _llama(s: Settings) -> ModelConfig:
    return _gated(s, qkv=s.flag("attention_bias", False), out=s.flag("attention_bias", False))


def _mistral(s: Settings) -> ModelConfig:
    window = s.whole("sliding_window", 4096) if "sliding_window" not in s.values else _optional_window(s)
    return _gated(s, kv_heads=8, window=(window, 0))


def _qwen2(s: Settings) -> ModelConfig:
    return _gated(s, qkv=True, window=_qwen_window(s))


def _qwen3(s: Settings) -> ModelConfig:
    bias = s.flag("attention_bias", False)
    norm = QKNormConfig(kind="rms_norm", eps=s.number("rms_norm_eps", 1e-6))
    return _gated(s, qkv=bias, out=bias, qk_norm=norm, head_size=128, window=_qwen_window(s))


def _optional_window(s: Settings) -> int:
    return 0 if s.values.get("sliding_window") is None else s.whole("sliding_window")


def _qwen_window(s: Settings) -> tuple[int, int]:
    """(window, first layer with it)."""
    if not s.flag("use_sliding_window", False):
        return 0, 0
    window, depth, first = (
        _optional_window(s),
        s.whole("num_hidden_layers"),
        s.whole("max_window_layers", 28, 0),
    )
    kinds = s.values.get("layer_types")
    if isinstance(kinds, list):
        first = next((i for i, kind in enumerate(kinds) if kind == "sliding_attention"), depth)
        if kinds != ["full_attention"] * first + ["sliding_attention"] * (depth - first):
            raise s.wrong("layer_types", "full_attention in the first layers, sliding_attention in the rest")
    return (window, first) if window and first < depth else (0, 0)


def _gated(
    s: Settings,
    *,
    qkv: bool = False,
    out: bool = False,
    qk_norm: QKNormConfig | None = None,
    head_size: int = 0,
    kv_heads: int = 0,
    window: tuple[int, int] = (0, 0),
) -> ModelConfig:
    """RMSNorm, SwiGLU, rotary positions."""
    s.require("hidden_act", "silu", "swish")
    s.require("pretraining_tp", 1)
    width, heads = s.whole("hidden_size"), s.whole("num_attention_heads")
    size = s.whole("head_dim", head_size or max(width // heads, 1))
    norm = NormConfig(kind="rms_norm", eps=s.number("rms_norm_eps", 1e-6))
    base, scaling = read_rope(s)
    longest = s.whole("max_position_embeddings", 2048)
    if scaling.kind == "dynamic":
        longest = int(longest * scaling.factor)
    return ModelConfig(
        hidden_size=width,
        depth=s.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=s.whole("num_key_value_heads", kv_heads or heads),
        head_size=0 if size * heads == width else size,
        mlp="swiglu",
        mlp_hidden=s.whole("intermediate_size"),
        norm=norm,
        out_norm=norm,
        qk_norm=qk_norm or QKNormConfig(kind="none"),
        bias=BiasConfig(qkv=qkv, attention=out, mlp=s.flag("mlp_bias", False)),
        num_class_tokens=0,
        vocab_size=s.whole("vocab_size"),
        max_text_tokens=longest,
        language=LanguageConfig(
            positions="rope",
            rope_base=base,
            scaling=scaling,
            tied=s.flag("tie_word_embeddings", False),
            window=window[0],
            window_from=window[1],
        ),
    )


def read_rope(s: Settings) -> tuple[float, ScalingConfig]:
    """(base of the rotary frequencies, how they are stretched), from `rope_parameters`, or from `rope_theta`
    and `rope_scaling`."""
    table = s.table("rope_parameters") if s.values.get("rope_parameters") else s.table("rope_scaling")
    base = table.number("rope_theta", s.number("rope_theta", 10_000.0))
    for place in (s, table):
        place.require("partial_rotary_factor", 1, 1.0)
    kind = table.values.get("rope_type", table.values.get("type", "default"))
    longest = s.whole("max_position_embeddings", 2048)
    if kind == "default":
        return base, ScalingConfig()
    # Some checkpoints keep it beside the table.
    trained = table.whole(
        "original_max_position_embeddings", s.whole("original_max_position_embeddings", longest)
    )
    if kind == "linear":
        return base, ScalingConfig(kind="linear", factor=table.number("factor"))
    if kind == "dynamic":
        return base, ScalingConfig(kind="dynamic", factor=table.number("factor"), trained_length=longest)
    if kind == "llama3":
        return base, ScalingConfig(
            kind="llama3",
            factor=table.number("factor"),
            trained_length=trained,
            slow=table.number("low_freq_factor"),
            fast=table.number("high_freq_factor"),
        )
    factor = table.number("factor", longest / trained)
    if kind == "yarn":
        return base, ScalingConfig(
            kind="yarn",
            factor=factor,
            trained_length=trained,
            slow=table.number("beta_slow", 1) or 1,
            fast=table.number("beta_fast", 32) or 32,
            whole=table.flag("truncate", True),
            attention=table.number("attention_factor", _yarn_attention(table, factor)),
        )
    if kind == "longrope":
        stretched = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
        return base, ScalingConfig(
            kind="longrope",
            factor=factor,
            trained_length=trained,
            short=table.numbers("short_factor"),
            long=table.numbers("long_factor"),
            attention=table.number("attention_factor", stretched),
        )
    known = "default, linear, dynamic, yarn, llama3, longrope"
    raise UserError(f"{table.where}: its kind is {kind!r}; expected one of {known}")


def _yarn_attention(table: Settings, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    mscale, of_all = table.number("mscale", 0), table.number("mscale_all_dim", 0)
    return scale(mscale) / scale(of_all) if mscale and of_all else scale(1)


def _gpt2(s: Settings) -> ModelConfig:
    s.require("scale_attn_weights", True)
    s.require("scale_attn_by_inverse_layer_idx", False)
    s.require("add_cross_attention", False)
    s.require("activation_function", "gelu_new", "gelu_pytorch_tanh", "gelu")
    width = s.whole("n_embd")
    norm = NormConfig(eps=s.number("layer_norm_epsilon", 1e-5))
    return ModelConfig(
        hidden_size=width,
        depth=s.whole("n_layer"),
        num_heads=s.whole("n_head"),
        mlp="gelu" if s.values.get("activation_function") == "gelu" else "gelu_tanh",
        mlp_hidden=s.whole("n_inner", 4 * width),
        norm=norm,
        out_norm=norm,
        qk_norm=QKNormConfig(kind="none"),
        bias=BiasConfig(qkv=True),
        num_class_tokens=0,
        vocab_size=s.whole("vocab_size"),
        max_text_tokens=s.whole("n_positions", 1024),
        language=LanguageConfig(tied=s.flag("tie_word_embeddings", True)),
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("llama", _llama, "LlamaForCausalLM"),
        Family("mistral", _mistral, "MistralForCausalLM"),
        Family("qwen2", _qwen2, "Qwen2ForCausalLM"),
        Family("qwen3", _qwen3, "Qwen3ForCausalLM"),
        Family("gpt2", _gpt2, "GPT2LMHeadModel"),
    )
}
"""By `model_type`."""
