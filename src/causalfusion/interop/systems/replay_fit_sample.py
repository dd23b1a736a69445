"""Replaying the recorded sampling of FiTv2 (shared/parity/neighbours/fitv2), each image on its own grid.

Shape letters: B rows, N places of a row, n tokens of an image, P numbers of a token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from causalfusion.codec.patches import unpatchify
from causalfusion.config import SampleConfig
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.fit import rope_of
from causalfusion.interop.systems.replay_dit import GUIDED_CHANNELS
from causalfusion.interop.systems.replay_fit import Order, places_in
from causalfusion.interop.systems.replay_model import RecordedSystem, sample_freely
from causalfusion.interop.systems.replay_sit import guided_velocities, sde_settings, sde_states, times_of


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
        sampler="euler",
        diffusion_steps=[points - 1],
        guidance_scale=float(r.setting("cfg_scale")),
        guided_channels=GUIDED_CHANNELS,
    )
    null_class = torch.tensor(int(r.setting("null_class")))
    r.check("null_class", torch.tensor(system.released.model.null_label), null_class, "labels")
    times = times_of(system.process.sampler(config, points - 1))
    r.compare("times", torch.cat([times, torch.ones(1)]), "path coefficients")
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
        r.compare("sde/t_model", times_of(sampler).repeat_interleave(2), "path coefficients")
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
