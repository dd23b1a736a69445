"""LatentLM's sigma-VAE (2412.08635): its state dict in our names, and the replay of its recorded tensors.

Encoder and decoder are plain vision transformers (`vit`), or the encoder is a BEiT-3 one (`beit3`), whose
blocks have LayerNorm also before the output projections.

Shape letters: B images, D width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from causalfusion.codec.fixed_variance import FixedVarianceAutoencoder
from causalfusion.errors import UserError
from causalfusion.interop.recording import Recording

STD_DIVISOR = 0.8
"""The released code's `std` is this times the root mean square of the deviations that it draws."""
_HEADS = {
    "encoder_post_processor.dense": "to_mean",
    "decoder_post_processor.fc1": "to_hidden",
    "decoder_post_processor.fc2": "to_pixels",
}
_VIT = {
    "cls_token": "class_token",
    "pos_embed": "positions",
    "patch_embed.proj": "patches",
    "fc_norm": "norm",
}
_VIT_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_BEIT = {
    "vision_embed.cls_token": "class_token",
    "vision_embed.proj": "patches",
    "encoder.layer_norm": "norm",
}
_BEIT_BLOCK = {
    "self_attn_layer_norm": "norm1",
    "self_attn.inner_attn_ln": "attention_norm",
    "self_attn.out_proj": "proj",
    "final_layer_norm": "norm2",
    "ffn.fc1": "fc1",
    "ffn.ffn_layernorm": "mlp_norm",
    "ffn.fc2": "fc2",
}
_UNUSED_POSITIONS = 2
"""Rows of BEiT-3's table of positions that stand before those of the class token and the patches."""


def convert_autoencoder(weights: dict[str, Tensor], config: dict[str, Any]) -> FixedVarianceAutoencoder:
    """The autoencoder of a released state dict and its constructor's arguments, in evaluation mode. Raises
    UserError, naming the weight, if one is missing or unexpected."""
    left = dict(weights)
    sub_norm = config["arch"] == "beit3"
    new = {name: left.pop(old) for old, name in _with_parts(_HEADS, left)}
    new |= _beit_side(left, "encoder.") if sub_norm else _vit_side(left, "encoder.")
    new |= _vit_side(left, "decoder.")
    if left:
        raise UserError(f"the autoencoder's state dict has the unexpected weight {min(left)}")
    autoencoder = FixedVarianceAutoencoder(
        image_height=config["img_size"],
        image_width=config["img_size"],
        in_channels=config["in_chans"],
        patch_size=config["patch_size"],
        latent_channels=config["latent_size"],
        deviation=config["std"] / STD_DIVISOR,
        encoder_width=config["enc"]["dim"],
        encoder_depth=config["enc"]["depth"],
        encoder_heads=config["enc"]["heads"],
        encoder_sub_norm=sub_norm,
        encoder_eps=1e-5 if sub_norm else 1e-6,
        decoder_width=config["dec"]["dim"],
        decoder_depth=config["dec"]["depth"],
        decoder_heads=config["dec"]["heads"],
        mlp_ratio=config["mlp_ratio"],
    )
    try:
        autoencoder.load_state_dict(new)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise UserError(f"the autoencoder's state dict does not fit its configuration: {what}") from None
    return autoencoder.eval().requires_grad_(False)


def _with_parts(names: dict[str, str], weights: dict[str, Tensor]) -> list[tuple[str, str]]:
    """(released name, ours) of these modules' parameters, or of a parameter itself, that are there."""
    return [
        (f"{old}{part}", f"{new}{part}")
        for old, new in names.items()
        for part in ("", ".weight", ".bias")
        if f"{old}{part}" in weights
    ]


def _vit_side(weights: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """Takes the weights of a plain vision transformer out of `weights`; returns them under our names."""
    new = _take(weights, _VIT, side, side)
    for block in _numbers(weights, rf"{side}blocks\.(\d+)\."):
        place = f"{side}blocks.{block}."
        new |= _take(weights, _VIT_BLOCK, place, place)
        new[f"{place}qkv.weight"] = weights.pop(f"{place}attn.qkv.weight")
        q, v = weights.pop(f"{place}attn.q_bias"), weights.pop(f"{place}attn.v_bias")
        # A bias of the keys would change no softmax.
        new[f"{place}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return new


def _beit_side(weights: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    new = _take(weights, _BEIT, side, side)
    weights.pop(f"{side}vision_embed.mask_token", None)
    positions = weights.pop(f"{side}encoder.embed_positions.weight")
    new[f"{side}positions"] = positions[None, _UNUSED_POSITIONS:]
    for block in _numbers(weights, rf"{side}encoder\.layers\.(\d+)\."):
        theirs, ours = f"{side}encoder.layers.{block}.", f"{side}blocks.{block}."
        new |= _take(weights, _BEIT_BLOCK, theirs, ours)
        for part in ("weight", "bias"):
            parts = [weights.pop(f"{theirs}self_attn.{each}_proj.{part}") for each in "qkv"]
            new[f"{ours}qkv.{part}"] = torch.cat(parts)
    return new


def _take(weights: dict[str, Tensor], names: dict[str, str], theirs: str, ours: str) -> dict[str, Tensor]:
    full = {f"{theirs}{old}": f"{ours}{new}" for old, new in names.items()}
    return {new: weights.pop(old) for old, new in _with_parts(full, weights)}


def _numbers(weights: dict[str, Tensor], pattern: str) -> list[str]:
    return sorted({found[1] for name in weights if (found := re.match(pattern, name))}, key=int)


@torch.no_grad()
def replay_fixed_variance(recording: Recording) -> None:
    """Compare a file `X.vae.safetensors`: features, mean, samples, kl, and images."""
    r, quantity = recording, "fixed-variance autoencoder"
    try:
        weights = {name: r[f"w/{name}"] for name in r.below("w/")}
        network = convert_autoencoder(weights, r.json("config"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{r.path} lacks {error}; expected a recorded autoencoder") from None
    image = r["image"]
    posterior = network.encode(image).latent_dist
    r.compare("features", network.encoder(image), quantity)
    r.compare("mean", posterior.mean, quantity)
    noise = r["eps"] * r["std_rand"][:, None, None, None]
    sample = posterior.mean + posterior.std * noise
    r.compare("sample", sample, quantity)
    if "sample_fixed" in r:
        r.compare("sample_fixed", posterior.mean + 0.5 * r["eps_fixed"], quantity)
    r.compare("kl", posterior.mean.square().mean()[None], quantity)
    r.compare("recon", network.decode(posterior.mean).sample, quantity)
    r.compare("decoded", network.decode(r["sample"]).sample, quantity)
