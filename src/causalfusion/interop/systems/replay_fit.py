"""Replaying recordings of FiTv2 (shared/parity/neighbours/fitv2): images of any size in padded or packed
rows. Each image of a row goes through our model by itself, on its own grid.

Shape letters: B rows, N places of a row, n tokens of an image, P numbers of a token, H head size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from causalfusion.config import ModelConfig
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.links import channels_last
from causalfusion.interop.systems.replay_model import (
    RecordedSystem,
    json_list,
    outputs_of,
    scaled_parts,
)
from causalfusion.interop.systems.replay_training import compare_gradients, dropped_labels, precise
from causalfusion.model.positions import rotation_at
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, class_segment, image_segment

TOLERANCES = {"predictions": 5e-6, "losses": 2e-6, "gradients": 2e-5, "sampling trajectories": 1e-5}


class Placed(NamedTuple):
    """An image in a row."""

    row: int
    at: Tensor
    """(n,) its places in the row."""
    grid: Tensor
    """(2,) rows and columns."""
    number: int
    """The mask's values at its places."""


def images_in(mask: Tensor, size: Tensor) -> Iterator[Placed]:
    """The images in rows of `mask` (B, N), whose sizes are (B, images, 2)."""
    for row, (ids, grids) in enumerate(zip(mask, size, strict=True)):
        for number, grid in enumerate(grids.long(), start=1):
            at = (ids == number).nonzero()[:, 0]
            if len(at):
                yield Placed(row, at, grid, number)


def places_in(grid: Tensor) -> Tensor:
    """(B, N, 2) rows and columns of a recorded grid (B, 2, N), which holds columns first."""
    return grid.flip(1).transpose(1, 2)


class Order:
    """Their order of the numbers of a token, and ours."""

    def __init__(self, system: RecordedSystem) -> None:
        patch = system.released.patch_size
        self.to_ours = channels_last(system.released.model.token_dim // patch**2, patch)
        self.to_theirs = self.to_ours.argsort()

    def ours(self, tokens: Tensor) -> Tensor:
        return tokens[..., self.to_ours]

    def theirs(self, tokens: Tensor) -> Tensor:
        return tokens[..., self.to_theirs]


def predict(
    system: RecordedSystem, model: Transformer, x: Tensor, t: Tensor, y: Tensor, image: Placed, places: Tensor
) -> Tensor:
    """Our output (1, n, P) for one image of x (B, N, P), in our order, at times and labels (B,)."""
    one = slice(image.row, image.row + 1)
    told = system.process.timesteps(system.levels(t[one]))[:, None]
    ar_step = torch.ones(1, len(image.at), dtype=torch.int64)
    tokens = x[one, image.at]
    segment = image_segment("noised", tokens, ar_step, places[one, image.at], told.to(tokens.dtype))
    segment = replace(segment, grid=image.grid[None])
    return model(PackedSequence((class_segment(y[one], 0), segment))).image


def predict_rows(
    r: Recording, prefix: str, system: RecordedSystem, model: Transformer, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """(outputs (B, N, P) in their order and sign, outputs (B, N, D) of the first block), 0 at padding."""
    order, x = Order(system), r[prefix + "x"]
    places = places_in(r[prefix + "grid"])
    out, block = torch.zeros_like(x), x.new_zeros(*mask.shape, model.config.hidden_size)
    for image in images_in(mask, r[prefix + "size"]):
        with outputs_of(model.blocks[0]) as blocks:
            ours = predict(system, model, order.ours(x), r[prefix + "t"], r[prefix + "y"], image, places)
        out[image.row, image.at] = system.sign * order.theirs(ours[0])
        block[image.row, image.at] = blocks[0][0]
    return out, block


@torch.no_grad()
def replay_forward(r: Recording, system: RecordedSystem) -> None:
    """Replay X.forward: padded and packed rows, position tables, a shifted time, the norms' epsilons."""
    model, mask = system.model(), r["mask"]
    out, block = predict_rows(r, "", system, model, mask)
    r.compare("out", out, "predictions")
    if "block0_out" in r:  # their padding goes through the blocks, too, and sees itself
        r.check("block0_out", block, r["block0_out"] * mask[:, :, None], "predictions")
    if "rope_cos" in r:
        config = model.config
        cosines, sines = _rotation(config, places_in(r["grid"]), r["size"][:, 0].long())
        r.compare("rope_cos", cosines, "position tables")
        r.compare("rope_sin", sines, "position tables")
    if "eps_probe/out" in r:
        probe = system.model(*scaled_parts(r))
        r.compare("eps_probe/out", predict_rows(r, "", system, probe, mask)[0], "norm probes")
    for name in r.below("out_time_shift"):
        if re.fullmatch(r"[0-9.]+", name):
            shifted = system.with_diffusion(timestep_shift=float(name))
            out, _ = predict_rows(r, "", shifted, model, mask)
            r.compare(f"out_time_shift{name}", out, "predictions")
    if "packed/x" in r:
        ids = r["packed/ids"]
        out, _ = predict_rows(r, "packed/", system, model, ids)
        r.compare("packed/out_div_id", out, "predictions")
        # Their code multiplies by the mask, which holds the numbers of the images.
        r.compare("packed/out_raw", out * ids[:, :, None], "predictions")


def _rotation(config: ModelConfig, places: Tensor, grid: Tensor) -> Tensor:
    """(2, B, N, H)."""
    side = config.rope.trained_side
    trained = (side, side) if side else (config.grid_height, config.grid_width)
    return rotation_at(places, grid, config.rope, config.head_dim, trained)


def replay_train(r: Recording, system: RecordedSystem) -> None:
    """Replay X.train: noised tokens, velocities, losses and gradients of padded rows."""
    probability = float(system.settings.get("class_dropout_prob", 0.1))  # type: ignore[arg-type]
    model, exact, snr = system.model(), precise(system.model()), json_list(r, "snr")
    for number, prefix in enumerate(r.prefixes("case")):
        labels = dropped_labels(r, prefix, model.config.null_label, probability)
        if prefix + "u_normal" in r:
            r.compare(prefix + "t", torch.sigmoid(r[prefix + "u_normal"]), "noised tokens")
        elif prefix + "u_uniform" in r:
            r.compare(prefix + "t", r[prefix + "u_uniform"], "noised tokens")
        if number < len(snr):
            lognormal = torch.tensor(prefix + "u_normal" in r)
            r.check(prefix + "snr", lognormal, torch.tensor(snr[number] == "lognorm"), "labels")
        model.zero_grad(set_to_none=True)
        loss = _replay_case(r, prefix, system, model, labels)
        loss.mean().backward()
        r.compare(prefix + "loss_per_sample", loss, "losses")
        r.compare(prefix + "loss", loss.mean().reshape(1), "losses")
        if prefix + "loss_fp64" in r:
            loss = _losses(r, prefix, system, exact, labels, torch.float64)[0]
            r.compare(prefix + "loss_fp64", loss.mean().reshape(1), "losses")
        # Rotation and the norm of the keys make their biases count.
        compare_gradients(r, prefix, system, model, None, keys_cancel=False)


def _replay_case(
    r: Recording, prefix: str, system: RecordedSystem, model: Transformer, labels: Tensor
) -> Tensor:
    clean, noise, mask = r[prefix + "x1"], r[prefix + "noise"], r[prefix + "mask"]
    noised = system.process.noise(clean, noise, system.levels(r[prefix + "t"]))
    r.compare(prefix + "xt", noised.noised, "noised tokens")
    r.compare(prefix + "ut", -noised.target, "noised tokens")
    r.compare(prefix + "ratio", mask.shape[1] / (mask != 0).sum(1), "noised tokens")
    losses, out = _losses(r, prefix, system, model, labels, torch.float32)
    r.compare(prefix + "pred", out, "predictions")
    return losses


def _losses(
    r: Recording, prefix: str, system: RecordedSystem, model: Transformer, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(losses (B,), outputs (B, N, P) in their order and sign): the mean over the tokens of an image."""
    order, levels = Order(system), system.levels(r[prefix + "t"])
    clean, noise = (order.ours(r[prefix + name]).to(dtype) for name in ("x1", "noise"))
    mask, places = r[prefix + "mask"], places_in(r[prefix + "grid"])
    noised = system.process.noise(clean, noise, levels)
    out, losses = torch.zeros_like(clean), []
    for image in images_in(mask, r[prefix + "size"]):
        ours = predict(system, model, noised.noised, r[prefix + "t"], labels, image, places)
        one = slice(image.row, image.row + 1)
        target = noised.target[one, image.at]
        # The process's own errors are float32.
        losses.append((ours - target).square().mean())
        out[image.row, image.at] = system.sign * order.theirs(ours[0].detach())
    return torch.stack(losses), out
