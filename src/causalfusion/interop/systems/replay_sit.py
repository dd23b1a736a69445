"""Replaying recordings of SiT (shared/parity/neighbours/sit): its train steps and samplers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.samplers import Sampler
from causalfusion.errors import UserError
from causalfusion.generate.ar_step import make_step
from causalfusion.generate.context import prefill
from causalfusion.generate.guidance import guidance_of_steps
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.replay_dit import GUIDED_CHANNELS
from causalfusion.interop.systems.replay_model import RecordedSystem, sample_freely
from causalfusion.interop.systems.replay_paths import compare_drift, compare_paths
from causalfusion.interop.systems.replay_training import (
    compare_gradients,
    replay_image_case,
)
from causalfusion.model.transformer import Transformer

TOLERANCES = {"predictions": 5e-6, "losses": 2e-6, "gradients": 1e-4, "sampling trajectories": 1e-5}
_NOISE = {
    "sigma": "sigma",
    "linear": "linear",
    "decreasing": "decreasing",
    "constant": "constant",
    "SBDM": "sbdm",
    "inccreasing-decreasing": "increasing_decreasing",
    "increasing-decreasing": "increasing_decreasing",
}
"""Their names of the noise of an SDE, one of them misspelt, and ours."""
_SDE = {"Euler": "sde", "Heun": "sde_heun"}


def replay_train(r: Recording, system: RecordedSystem) -> None:
    """Replay X.train: noised latents, velocities, losses and gradients; coefficients and weighted losses of
    every path."""
    for prefix in r.prefixes("case"):
        clean, levels = system.tokens(r[prefix + "x1"]), system.levels(r[prefix + "t"])
        passed, model = replay_image_case(r, prefix, system, clean, levels)
        r.compare(prefix + "ut", -system.latents(passed.noised.target), "noised tokens")
        r.compare(prefix + "pred", -system.latents(passed.predictions.image), "predictions")
        compare_gradients(r, prefix, system, model, None)
    compare_paths(r, system, system.model())


@torch.no_grad()
def replay_sample(r: Recording, system: RecordedSystem) -> None:
    """Replay X.sample: trajectories of the flow and of its SDEs under guidance, and drifts of all paths."""
    model = system.model()
    if "null_class" in r.metadata:
        null_class = torch.tensor(int(r.setting("null_class")))
        r.check("null_class", torch.tensor(model.config.null_label), null_class, "labels")
    z, labels, points = system.tokens(r["z"]), r["y"], int(r.setting("num_steps"))
    config = SampleConfig(
        sampler="euler",
        diffusion_steps=[points - 1],
        guidance_scale=float(r.setting("cfg_scale")),
        guided_channels=GUIDED_CHANNELS,
    )
    sampler = system.process.sampler(config, points - 1)
    r.compare("ode/times", torch.cat([times_of(sampler), torch.ones(1)]), "path coefficients")
    if "ode_euler/x_seq" in r:
        states = system.tokens(r["ode_euler/x_seq"])[:-1]
        velocities = guided_velocities(system, model, config, labels, list(states))
        r.compare_steps("ode_euler/v_seq", velocities, "sampling trajectories")
    heun = replace(config, sampler="heun")
    times = times_of(system.process.sampler(heun, points - 1))
    r.compare("ode_heun2/t_model", times, "path coefficients")
    for name, settings, every in (
        ("ode_euler", config, 1),
        ("ode_euler_cfg_all", replace(config, guided_channels=0), 1),
        ("ode_heun2", heun, 2),
    ):
        if f"{name}/x_seq" in r:
            events = sample_freely(system, model, settings, labels, z)[every - 1 :: every]
            states = [r["z"], *(system.latents(event.tokens) for event in events)]
            r.compare_steps(f"{name}/x_seq", states, "sampling trajectories", "running freely")
    cases = r.json("sde_cases") if "sde_cases" in r.metadata else {}
    for name, case in cases.items():
        _replay_sde(r, system, model, name, sde_settings(config, case, points, f"{r.path}: {name}"))
    compare_drift(r, system, model)


def times_of(sampler: Sampler) -> Tensor:
    """Their times, which run from noise, 0, to data, 1, of its calls; before any shift of what is told."""
    return 1 - torch.tensor(sampler.shares)


def guided_velocities(
    system: RecordedSystem, model: Transformer, config: SampleConfig, labels: Tensor, states: list[Tensor]
) -> list[Tensor]:
    """The guided velocity, towards the data, at every call of the sampler, for recorded states (B, L, P)."""
    sampler = system.process.sampler(config, *config.diffusion_steps)
    if len(states) != len(sampler.timesteps):
        raise UserError(f"{system.where}: {len(states)} states for {len(sampler.timesteps)} times")
    numbers = system.guided(config.guided_channels) if config.guided_channels else None
    guidance = guidance_of_steps(config, [1], system.process, numbers)[0]
    context = prefill(model, labels, config)
    positions = torch.arange(states[0].shape[1])[None].expand(len(labels), -1)
    step = make_step(model, context, positions, positions.shape[1], guidance)
    calls = zip(states, sampler.timesteps, sampler.shares, strict=True)
    return [-system.latents(step.predict(x, told, share)) for x, told, share in calls]


def sde_settings(config: SampleConfig, case: dict[str, Any], points: int, where: str) -> SampleConfig:
    """Our settings of a recorded SDE. Raises UserError for a form that is not known."""
    method, form = case.get("sampling_method"), case.get("diffusion_form")
    if method not in _SDE or form not in _NOISE:
        raise UserError(f"{where}: SDE {method} with noise {form}; known are {list(_SDE)} and {list(_NOISE)}")
    rule: Any = (case.get("last_step") or "none").lower()
    sampler: Any = _SDE[method]
    noise: Any = _NOISE[form]
    return replace(
        config,
        sampler=sampler,
        sde_noise=noise,
        sde_norm=float(case.get("diffusion_norm", 1.0)),
        last_step_rule=rule,
        last_step=float(case.get("last_step_size") or 0.04),
        diffusion_steps=[points - (rule == "none")],
    )


def sde_states(
    system: RecordedSystem, model: Transformer, config: SampleConfig, labels: Tensor, z: Tensor, noise: Tensor
) -> list[Tensor]:
    """The state (B, L, P) after every step, of our generation loop; noise (K, B, L, P) is that of the noisy
    steps."""
    calls = 2 if config.sampler == "sde_heun" else 1
    added = torch.cat([noise.repeat_interleave(calls, dim=0), torch.zeros_like(noise[:1])])
    events = sample_freely(system, model, config, labels, z, added)
    if config.last_step_rule == "none":
        return [*(event.tokens for event in events), events[-1].tokens]
    return [event.tokens for event in [*events[calls - 1 : -1 : calls], events[-1]]]


def _replay_sde(
    r: Recording, system: RecordedSystem, model: Transformer, name: str, config: SampleConfig
) -> None:
    if not r.below(f"{name}/"):
        return
    noise, z = system.tokens(r["sde/noise_seq"]), system.tokens(r["z"])
    times = times_of(system.process.sampler(config, *config.diffusion_steps))
    # Their code asks the network twice at each time, for the velocity and for the score.
    r.compare(f"{name}/t_model", times.repeat_interleave(2), "path coefficients")
    states = [system.latents(x) for x in sde_states(system, model, config, r["y"], z, noise)]
    r.compare_steps(f"{name}/x_seq", states, "sampling trajectories", "running freely")
    r.compare_steps(f"{name}/x_last2", states[-2:], "sampling trajectories", "running freely")
