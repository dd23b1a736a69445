"""Converting the configuration of model folders in earlier formats.

A folder in the current format must have every key. Keys that an earlier format allowed to omit are filled in
from that format's table, which is frozen, and not from the current defaults, which may change.
"""

from __future__ import annotations

import copy
from typing import Any

from causalfusion.config.earlier import rename_settings

FORMAT_1 = "causalfusion-1"
FORMAT_2 = "causalfusion-2"
FORMAT_3 = "causalfusion-3"
FORMAT_4 = "causalfusion-4"
FORMAT_5 = "causalfusion-5"
EARLIER = (FORMAT_5, FORMAT_4, FORMAT_3, FORMAT_2, FORMAT_1)


def is_ours(config: Any) -> bool:
    """Whether the content of a config.json is that of a model of ours, in any format, a later one too."""
    return isinstance(config, dict) and str(config.get("format")).startswith("causalfusion-")


_DEFAULTS_1: dict[str, Any] = {
    "model": {
        "hidden_size": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0, "num_class_tokens": 4,
        "class_token_repeats": 1, "position_embedding": "sincos", "conditioning": "in_context",
        "qk_norm": True, "num_classes": 0, "token_dim": 0, "vocab_size": 0, "max_text_tokens": 128,
        "max_images": 1, "grid_height": 0, "grid_width": 0,
    },
    "codec": {
        "autoencoder": "", "patch_size": 1, "latents": "sample", "normalization": "given", "scale": 1.0,
        "shift": 0.0, "image_height": 0, "image_width": 0, "image_channels": 0, "latent_channels": 0,
        "downsample": 0,
    },
    "diffusion": {
        "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon",
        "loss_weight": "none", "snr_limit": 5.0,
    },
    "factorization": {
        "distribution": "decay", "decay": 0.9, "num_ar_steps": 1, "split": "per_batch", "order": "random",
        "block_size": 4, "given_order": [], "loss_weight": "linear", "loss_weight_first": 2.0,
        "loss_weight_last": 1.0, "timesteps": "shared", "timesteps_per_ar_step": 1,
    },
    "text": {
        "tokenizer": "", "vocab_size": 512, "caption_first": 0.8, "image_first": 0.2, "image_only": 0.0,
        "text_only": 0.0, "caption_dropout": 0.1, "loss_coefficient": 0.3, "examples_per_sequence": 1,
        "image_context": "clean", "max_context_timestep": 500,
    },
    "tokenizer_fingerprint": "", "autoencoder_fingerprint": "", "class_names": [], "class_dropout": None,
    "images_seen": 0, "origin": "",
}  # fmt: skip
"""Defaults of causalfusion-1, under the current names."""

LATER_IN_1 = frozenset({
    "model.vocab_size", "model.max_text_tokens", "model.max_images", "diffusion.loss_weight",
    "diffusion.snr_limit", "factorization.given_order", "tokenizer_fingerprint", "autoencoder_fingerprint",
    "class_dropout", *(f"text.{name}" for name in _DEFAULTS_1["text"]),
})  # fmt: skip
"""Keys that were added while causalfusion-1 was the format, so that older folders may lack them."""


_ADDED_IN_3: dict[str, Any] = {
    "model": {"predicts_variance": False},
    "diffusion": {
        "path": "ddpm", "beta_schedule": "linear", "cosine_offset": 0.008, "variance": "fixed",
        "error_in": "prediction", "least_level": 0.05, "level_distribution": "uniform", "level_mean": 0.0,
        "level_std": 1.0, "level_shift": 1.0, "level_range": [0.0, 1.0], "timestep_scale": 1000.0,
        "timestep_from": "clean",
    },
}  # fmt: skip
"""Keys that were added in causalfusion-3, with the values that earlier formats imply."""


_ADDED_IN_4: dict[str, Any] = {
    "model": {
        "num_kv_heads": 0, "mlp": "gelu_tanh", "mlp_hidden": 0, "dropout": 0.0, "attention_dropout": 0.0,
        "norm": {"kind": "layer_norm", "weight": "auto", "eps": 1e-5},
        "out_norm": {"kind": "layer_norm", "weight": "auto", "eps": 1e-5},
        "bias": {
            "qkv": False, "attention": True, "mlp": True, "input": True, "output": True, "condition": True,
        },
        "rope": {
            "base": 100.0, "axes": "grid", "pairs": "halves", "spacing": "open", "extrapolation": "none",
            "per_axis": True, "trained_side": 0,
        },
        "adaln_size": 0, "adaln_rank": 0, "input_norm": False, "context": "causal",
        "encoder": {"depth": 0, "hidden_size": 0, "num_heads": 0}, "head_size": 0,
        "language": {
            "positions": "learned", "rope_base": 10_000.0, "tied": False, "window": 0, "window_from": 0,
            "scaling": {
                "kind": "none", "factor": 1.0, "trained_length": 0, "slow": 1.0, "fast": 32.0, "whole": True,
                "attention": 1.0, "short": [], "long": [],
            },
        },
        "head": {
            "kind": "joint", "ask": "mask", "width": 0, "depth": 3, "mlp": "silu", "mlp_hidden": 0,
            "norm": {"kind": "layer_norm", "weight": "auto", "eps": 1e-5}, "bias": True, "positions": False,
        },
    },
    "diffusion": {"schedule_precision": "float64", "timestep_shift": 1.0},
    "factorization": {"mask_ratio_mean": 1.0, "mask_ratio_std": 0.25, "mask_ratio_min": 0.7},
}  # fmt: skip
"""Keys that were added in causalfusion-4, with the values that earlier formats imply."""

_ADDED_IN_5: dict[str, Any] = {"codec": {"max_area": 0}}
"""Keys that were added in causalfusion-5, with the values that earlier formats imply."""


_ADDED_IN_6: dict[str, Any] = {
    "model": {
        "image_weights": {"kind": "shared", "hidden_size": 0, "mlp_hidden": 0},
        "lora": {"rank": 0, "alpha": 0.0},
        "language": {"markers": "vocabulary", "longest": 0},
    },
}
"""Keys that were added in causalfusion-6, with the values that earlier formats imply."""


def bring_forward(format_: str, values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the content of a `config.json` of an earlier format, without its `format`, in the current format; the
    settings that it lacked, such as "diffusion.loss_weight = none"). Unknown keys, and missing keys that its
    format required, are left for the caller to refuse."""
    filled: list[str] = []
    if format_ == FORMAT_1:
        values, filled = _filled(rename_settings(values), _DEFAULTS_1)
    if format_ in (FORMAT_1, FORMAT_2):
        values = _filled(values, _ADDED_IN_3)[0]
    if format_ not in (FORMAT_4, FORMAT_5):
        values = _filled(rename_settings(values), _ADDED_IN_4)[0]
    if format_ != FORMAT_5:
        values = _filled(values, _ADDED_IN_5)[0]
    return _filled(values, _ADDED_IN_6)[0], filled


def _filled(
    values: dict[str, Any], defaults: dict[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    filled: list[str] = []
    complete = dict(values)
    for key, default in defaults.items():
        table = values.get(key)
        if key not in values:
            complete[key] = copy.deepcopy(default)
            tables = default.items() if isinstance(default, dict) else ()
            filled += [f"{prefix}{key}.{name} = {value!r}" for name, value in tables]
            filled += [f"{prefix}{key} = {default!r}"] * (not isinstance(default, dict))
        elif isinstance(default, dict) and isinstance(table, dict):
            complete[key], inner = _filled(table, default, f"{prefix}{key}.")
            filled += inner
    return complete, filled
