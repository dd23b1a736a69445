"""Converting KL autoencoder checkpoints from the original layout (LDM's, also used by the 16-channel one) to
diffusers' layout.

The network is the same under different names, except that the 1x1 convolutions of the attention became linear
layers. All sizes follow from the weights' shapes, except the 32 groups of GroupNorm, which never vary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from causalfusion.errors import UserError

GROUPS = 32
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
WEIGHTS = ("model", "state_dict", "ema", "model_ema", "ema_state_dict")
"""Keys under which checkpoints hold a state dict."""
_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Prefixes that DistributedDataParallel and torch.compile add to every name."""
_TRAINING_ONLY = "loss."
"""Prefix of the perceptual loss and the discriminator, which some checkpoints include."""


def convert_kl_autoencoder(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict in diffusers' layout, arguments of its `AutoencoderKL`).

    Raises UserError, naming the weight, if one is missing or unexpected.
    """
    weights = {name: value for name, value in state_dict.items() if not name.startswith(_TRAINING_ONLY)}
    settings = _settings(weights)
    converted: dict[str, Tensor] = {}
    unused = set(weights)
    for original, target in _modules(settings):
        for part in ("weight", "bias"):
            name = f"{original}.{part}"
            if name not in weights:
                raise UserError(
                    f"the autoencoder's checkpoint lacks {name}; it is cut short, or not a KL autoencoder"
                )
            value = weights[name]
            is_linear = ".attentions." in target and value.ndim == 4
            converted[f"{target}.{part}"] = value.flatten(1) if is_linear else value
            unused.discard(name)
    if unused:
        raise UserError(
            f"the autoencoder's checkpoint has the unexpected weight {min(unused)} (of {len(unused)}); "
            "expected those of a KL autoencoder and no others"
        )
    return converted, settings


def _settings(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of `AutoencoderKL`, derived from the weights' names and shapes."""
    levels = _count(weights, "encoder.down.{}.block.0.conv1.weight")
    blocks = _count(weights, "encoder.down.0.block.{}.conv1.weight")
    needed = ["encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"]
    missing = [name for name in needed if name not in weights]
    if missing or not levels:
        name = missing[0] if missing else "encoder.down.0.block.0.conv1.weight"
        raise UserError(f"the checkpoint is not a KL autoencoder's: it has no weight {name}")
    channels = [weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    down_attends = [f"encoder.down.{level}.attn.0.norm.weight" in weights for level in range(levels)]
    up_attends = [f"decoder.up.{level}.attn.0.norm.weight" in weights for level in reversed(range(levels))]
    return {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "block_out_channels": tuple(channels),
        "layers_per_block": blocks,
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in down_attends
        ),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in up_attends),
        "norm_num_groups": GROUPS,
        "mid_block_add_attention": "encoder.mid.attn_1.norm.weight" in weights,
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
    }


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    number = 0
    while pattern.format(number) in weights:
        number += 1
    return number


def _modules(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(original name, diffusers' name) of every module; each has a weight and a bias."""
    channels, blocks = settings["block_out_channels"], settings["layers_per_block"]
    levels = len(channels)
    inputs = [channels[0], *channels[:-1]]
    for level, kind in enumerate(settings["down_block_types"]):
        original, target = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        yield from _level(original, target, blocks, inputs[level] != channels[level], kind.startswith("Attn"))
        if level < levels - 1:
            yield f"{original}.downsample.conv", f"{target}.downsamplers.0.conv"
    # The original numbers the decoder's levels from the image's side, diffusers from the latents' side.
    inputs = [*channels[1:], channels[-1]]
    for place, kind in enumerate(settings["up_block_types"]):
        level = levels - 1 - place
        original, target = f"decoder.up.{level}", f"decoder.up_blocks.{place}"
        yield from _level(
            original, target, blocks + 1, inputs[level] != channels[level], kind.startswith("Attn")
        )
        if level > 0:
            yield f"{original}.upsample.conv", f"{target}.upsamplers.0.conv"
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{side}.norm_out", f"{side}.conv_norm_out"
        for number in (0, 1):
            yield from _residual(
                f"{side}.mid.block_{number + 1}", f"{side}.mid_block.resnets.{number}", False
            )
        if settings["mid_block_add_attention"]:
            yield from _attention(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
    if settings["use_quant_conv"]:
        yield "quant_conv", "quant_conv"
    if settings["use_post_quant_conv"]:
        yield "post_quant_conv", "post_quant_conv"


def _level(original: str, target: str, blocks: int, widens: bool, attends: bool) -> Iterator[tuple[str, str]]:
    for block in range(blocks):
        yield from _residual(f"{original}.block.{block}", f"{target}.resnets.{block}", widens and block == 0)
        if attends:
            yield from _attention(f"{original}.attn.{block}", f"{target}.attentions.{block}")


def _residual(original: str, target: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    yield from ((f"{original}.{name}", f"{target}.{name}") for name in ("norm1", "conv1", "norm2", "conv2"))
    if shortcut:
        yield f"{original}.nin_shortcut", f"{target}.conv_shortcut"


def _attention(original: str, target: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{original}.{name}", f"{target}.{new}") for name, new in _ATTENTION.items())


def unwrap_checkpoint(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict in the content of a checkpoint file: the content itself, or a dict in it under one of
    the keys WEIGHTS, nested ones too. Raises UserError if it holds no tensors."""
    for name in WEIGHTS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise UserError(
            f"{where} holds no weights; expected a state dict, bare or under `{'`, `'.join(WEIGHTS)}`"
        )
    return {_PREFIXES.sub("", str(name)): value for name, value in content.items()}
