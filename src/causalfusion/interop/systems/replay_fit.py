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

from causalfusion.codec.patches import unpatchify
from causalfusion.config import ModelConfig, SampleConfig
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.fit import rope_of
from causalfusion.interop.systems.links import channels_last
from causalfusion.interop.systems.replay_dit import GUIDED_CHANNELS
from causalfusion.interop.systems.replay_model import (
    RecordedSystem,
    json_list,
    outputs_of,
    sample_freely,
    scaled_parts,
)
from causalfusion.interop.systems.replay_sit import guided_velocities, sde_settings, sde_states
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
    """What the mask has at its places."""


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


# --- sampling -----------------------------------------------------------------------------------------


def on_grid(system: RecordedSystem, rows: int, columns: int) -> RecordedSystem:
    """The same network for images of another grid, which its weights do not know."""
    released = system.released
    side = released.model.rope.trained_side or released.model.grid_height
    rope = replace(released.model.rope, trained_side=side)
    model = replace(released.model, grid_height=rows, grid_width=columns, rope=rope)
    return replace(system, released=replace(released, model=model))


@torch.no_grad()
def replay_sample(r: Recording, system: RecordedSystem) -> None:
    """Replay X.sample: trajectories of the flow and of its SDE on grids of any size, under guidance."""
    points = int(r.setting("num_steps"))
    config = SampleConfig(
        sampler="euler", diffusion_steps=[points - 1], guidance_scale=float(r.setting("cfg_scale")),
        guided_channels=GUIDED_CHANNELS,
    )  # fmt: skip
    null_class = torch.tensor(int(r.setting("null_class")))
    r.check("null_class", torch.tensor(system.released.model.null_label), null_class, "labels")
    told = system.process.sampler(config, points - 1).timesteps
    r.compare("times", torch.tensor([*told, 1.0]), "path coefficients")
    sizes = r["size"][:, 0].long()
    grid = places_in(r["grid"])
    images = [Sampled(system, row, tuple(size), grid[row]) for row, size in enumerate(sizes.tolist())]  # type: ignore[arg-type]
    z = r["z"]
    free = {
        "cfg3/x_seq": config,
        "cfg_all/x_seq": replace(config, guided_channels=0),
    }
    for name, settings in free.items():
        if name in r:
            states = [z, *_freely(images, settings, r["y"], z)]
            r.compare_steps(name, states, "sampling trajectories", "running freely")
            if name == "cfg3/x_seq" and "cfg3/final_nchw" in r:
                finals = [image.latents(states[-1]) for image in images]
                r.compare("cfg3/final_nchw", torch.cat(finals), "sampling trajectories")
    if "cfg3/v_seq" in r:
        velocities = _velocities(images, config, r["y"], list(r["cfg3/x_seq"][:-1]))
        r.compare_steps("cfg3/v_seq", velocities, "sampling trajectories")
    if "cfg3_pow/final" in r:
        power = replace(config, guidance_power=float(r.setting("scale_pow")))
        states = [z, *_freely(images, power, r["y"], z)]
        r.compare("cfg3_pow/final", states[-1], "sampling trajectories", "running freely")
        r.compare_steps(
            "cfg3_pow/v_seq", _velocities(images, power, r["y"], states[:-1]), "sampling trajectories"
        )
    if "sde" in r.metadata:
        settings = sde_settings(config, r.json("sde"), points, f"{r.path}: metadata sde")
        sampler = system.process.sampler(settings, *settings.diffusion_steps)
        r.compare("sde/t_model", torch.tensor(sampler.timesteps).repeat_interleave(2), "path coefficients")
        states = [image.sde(settings, r["y"], z, r["sde/noise_seq"]) for image in images]
        joined = [torch.cat(step) for step in zip(*states, strict=True)]
        r.compare_steps("sde/x_seq", joined, "sampling trajectories", "running freely")
    if "extrap" in r.metadata:
        _replay_extrapolation(r, system, config)


def _replay_extrapolation(r: Recording, system: RecordedSystem, config: SampleConfig) -> None:
    case = r.json("extrap")
    model = system.released.model
    rope = rope_of({**system.settings, **case}, f"{r.path}: metadata extrap", model.grid_height)
    other = replace(system, released=replace(system.released, model=replace(model, rope=rope)))
    places = places_in(r["extrap/grid"])
    size = int(case["h"]), int(case["w"])
    images = [Sampled(other, row, size, places[row]) for row in range(len(r["extrap/z"]))]
    config = replace(config, diffusion_steps=[int(case["num_steps"]) - 1])
    z = r["extrap/z"]
    states = [z, *_freely(images, config, r["y"], z)]
    r.compare_steps("extrap/x_seq", states, "sampling trajectories", "running freely")
    r.compare("extrap/v0", _velocities(images, config, r["y"], states[:-1])[0], "sampling trajectories")


class Sampled:
    """One image of a recorded row, generated on its own grid; tokens (B, N, P) are in their order."""

    def __init__(self, system: RecordedSystem, row: int, grid: tuple[int, int], places: Tensor) -> None:
        self.system, self.row, self.order = on_grid(system, *grid), row, Order(system)
        self.model, self.grid = self.system.model(), grid
        self.count = grid[0] * grid[1]
        raster = places[: self.count, 0] * grid[1] + places[: self.count, 1]
        if not torch.equal(raster, torch.arange(self.count)):
            raise ValueError(
                f"the grid of row {row} is not that of {grid[0]} x {grid[1]} tokens in raster order"
            )

    def ours(self, tokens: Tensor) -> Tensor:
        """(..., 1, n, P) of tokens (..., B, N, P)."""
        return self.order.ours(tokens[..., self.row : self.row + 1, : self.count, :])

    def theirs(self, tokens: Tensor, num_places: int) -> Tensor:
        """(1, N, P) of tokens (1, n, P)."""
        padded = tokens.new_zeros(1, num_places, tokens.shape[-1])
        padded[:, : self.count] = self.order.theirs(tokens)
        return padded

    def freely(self, config: SampleConfig, labels: Tensor, z: Tensor) -> list[Tensor]:
        one = labels[self.row : self.row + 1]
        events = sample_freely(self.system, self.model, config, one, self.ours(z))
        return [self.theirs(event.tokens, z.shape[1]) for event in events]

    def velocities(self, config: SampleConfig, labels: Tensor, states: list[Tensor]) -> list[Tensor]:
        one, own = labels[self.row : self.row + 1], [self.ours(state) for state in states]
        found = guided_velocities(self.system, self.model, config, one, own)
        return [self.theirs(self.system.tokens(v), states[0].shape[1]) for v in found]

    def sde(self, config: SampleConfig, labels: Tensor, z: Tensor, noise: Tensor) -> list[Tensor]:
        one = labels[self.row : self.row + 1]
        states = sde_states(self.system, self.model, config, one, self.ours(z), self.ours(noise))
        return [self.theirs(state, z.shape[1]) for state in states]

    def latents(self, tokens: Tensor) -> Tensor:
        return unpatchify(self.ours(tokens), *self.grid, self.system.released.patch_size)


def _freely(images: list[Sampled], config: SampleConfig, labels: Tensor, z: Tensor) -> list[Tensor]:
    """The states (B, N, P) after every step."""
    states = [image.freely(config, labels, z) for image in images]
    return [torch.cat(step) for step in zip(*states, strict=True)]


def _velocities(
    images: list[Sampled], config: SampleConfig, labels: Tensor, states: list[Tensor]
) -> list[Tensor]:
    found = [image.velocities(config, labels, states) for image in images]
    return [torch.cat(step) for step in zip(*found, strict=True)]
