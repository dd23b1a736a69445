"""Replaying recordings of joint networks on latents: forward passes and DDPM with learned variances, as DiT
and Large-DiT have it (shared/parity/neighbours/dit and large_dit)."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.variance import variational_term
from causalfusion.errors import UserError
from causalfusion.generate.ar_step import make_step
from causalfusion.generate.context import prefill
from causalfusion.generate.guidance import Guidance, guidance_of_steps
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.replay_model import (
    RecordedSystem,
    outputs_of,
    sample_freely,
    scaled_parts,
)
from causalfusion.interop.systems.replay_training import (
    compare_gradients,
    replay_image_case,
)
from causalfusion.model.embeddings import TIMESTEP_FREQUENCIES, sinusoid

TOLERANCES = {"predictions": 5e-6, "losses": 2e-6, "gradients": 1e-4, "sampling trajectories": 2e-5}
GUIDED_CHANNELS = 3
"""The released code's guidance."""


@torch.no_grad()
def replay_forward(r: Recording, system: RecordedSystem) -> None:
    """Replay X.forward: outputs, the first block, guidance, and the probe of the norms' epsilons."""
    model = system.model()
    with outputs_of(model.blocks[0]) as blocks:
        out = system.predict(model, r["x"], r["t"], r["y"])
    r.compare("block0_out", blocks[0], "predictions")
    r.compare("out", system.sign * system.latents(out), "predictions")
    # Machines round a frequency's exponential differently: that error, times the timestep, is in the angle.
    r.tolerances["timestep sinusoids"] = max(5e-6, float(r["t"].abs().max()) * 2.0**-24)
    r.compare("t_emb_input", sinusoid(r["t"], TIMESTEP_FREQUENCIES), "timestep sinusoids")
    if "eps_probe/out" in r:
        probe = system.model(*scaled_parts(r))
        out = system.predict(probe, r["x"], r["t"], r["y"])
        r.compare("eps_probe/out", system.sign * system.latents(out), "norm probes")
    if "cfg/x" in r:
        scale, x, t = float(r.setting("cfg_scale")), r["cfg/x"], r["cfg/t"]
        labels = torch.cat([r["cfg/y"], torch.full_like(r["cfg/y"], model.config.null_label)])
        both = system.predict(model, torch.cat([x, x]), torch.cat([t, t]), labels)
        for name, channels in (("out3", GUIDED_CHANNELS), ("out_all", None)):
            out = _guided_halves(system, both, scale, channels)
            r.compare(f"cfg/{name}", system.sign * system.latents(out), "predictions")


def _guided_halves(system: RecordedSystem, both: Tensor, scale: float, channels: int | None) -> Tensor:
    """(2 B, L, P or 2 P): what is guided is equal in both halves, the rest is each half's own."""
    conditional, unconditional = both.chunk(2)
    config = SampleConfig(guidance_scale=scale)
    numbers = system.guided(channels or system.released.model.token_dim)
    guidance = guidance_of_steps(config, [1], system.process, numbers)[0]
    guided = guidance.combine(conditional, unconditional)
    assert guidance.numbers is not None, "numbers were given"
    return torch.cat([guided, torch.where(guidance.numbers, guided, unconditional)])


def replay_train(r: Recording, system: RecordedSystem) -> None:
    """Replay X.train: noised latents, both terms of the loss, and gradients."""
    process, config = system.process, system.released.model
    assert isinstance(process, DDPM), "a system with a chain of noise levels"
    for prefix in r.prefixes("case"):
        x0, t = system.tokens(r[prefix + "x0"]), r[prefix + "t"]
        passed, model = replay_image_case(r, prefix, system, x0, t)
        out, noised = passed.predictions.image.detach(), passed.noised
        r.compare(prefix + "model_out", system.latents(out), "predictions")
        epsilon = out[..., : config.token_dim]
        r.compare(prefix + "mse", (epsilon - noised.noise).square().mean((1, 2)), "losses")
        if config.predicts_variance:
            clean = process.to_clean(epsilon, noised.noised, t)
            variances = out[..., config.token_dim :]
            bits = variational_term(process.schedule, clean, x0, noised.noised, variances, t)
            r.compare(prefix + "vb", bits.mean((1, 2)), "variational terms")
        # Rotary positions turn the keys' biases, which are a constant no longer.
        cancel = config.position_embedding != "rope"
        compare_gradients(r, prefix, system, model, None, keys_cancel=cancel)


@torch.no_grad()
def replay_sample(r: Recording, system: RecordedSystem) -> None:
    """Replay X.sample: the respaced chain, and ancestral sampling and DDIM under guidance."""
    process, model = system.process, system.model()
    assert isinstance(process, DDPM), "a system with a chain of noise levels"
    config = SampleConfig(
        respacing=r.setting("respacing"),
        guidance_scale=float(r.setting("cfg_scale")),
        guided_channels=GUIDED_CHANNELS,
    )
    null_class = torch.tensor(int(r.setting("null_class")))
    r.check("null_class", torch.tensor(model.config.null_label), null_class, "labels")
    steps = process.num_steps(config)[0]
    chain, sampler = process.respaced(config, steps), process.sampler(config, steps)
    for name in r.below("f64/"):
        if not re.fullmatch(r"[a-z_0-9]+", name) or not hasattr(chain, name):
            continue  # reported as not replayed
        ours = torch.from_numpy(np.ascontiguousarray(getattr(chain, name)))
        r.compare(f"f64/{name}", ours, "noise schedules")
    r.compare("timestep_map", torch.from_numpy(chain.timestep_map), "timesteps")
    r.compare("t_model", torch.tensor(sampler.timesteps), "timesteps")

    z, added, labels = system.tokens(r["z"]), system.tokens(r["noise_seq"]), r["y"]
    if "cfg3/x_seq" in r:
        inputs = [z, *system.tokens(r["cfg3/x_seq"])[:-1]]
        guidance = guidance_of_steps(config, [1], process, system.guided(GUIDED_CHANNELS))[0]
        outputs = predictions_at(system, inputs, sampler.timesteps, labels, guidance)
        r.compare_steps("cfg3/out_seq", [system.latents(out) for out in outputs], "sampling trajectories")
        cleaned, following = [], []
        # From recorded outputs: at the noisiest steps x_0 magnifies their rounding 157 times.
        recorded = system.outputs(r["cfg3/out_seq"]) if "cfg3/out_seq" in r else outputs
        for k, (x, out) in enumerate(zip(inputs, recorded, strict=True)):
            level = torch.full((len(x),), sampler.timesteps[k])
            cleaned.append(system.latents(process.to_clean(out[..., : x.shape[-1]], x, level)))
            following.append(system.latents(sampler.step(k, x, out, added[k])))
        r.compare_steps("cfg3/pred_x0_seq", cleaned, "sampling trajectories")
        r.compare_steps("cfg3/x_seq", following, "sampling trajectories", "each step by itself")
    free = {
        "cfg3/x_seq": config,
        "cfg_all/x_seq": replace(config, guided_channels=0),
        "ddim/x_seq": replace(config, sampler="ddim"),
    }
    for name, settings in free.items():
        if name in r:
            events = sample_freely(system, model, settings, labels, z, added)
            states = [system.latents(event.tokens) for event in events]
            r.compare_steps(name, states, "sampling trajectories", "running freely")


def predictions_at(
    system: RecordedSystem,
    inputs: list[Tensor],
    timesteps: list[int] | list[float],
    labels: Tensor,
    guidance: Guidance,
) -> list[Tensor]:
    """Guided predictions for recorded states."""
    if len(inputs) != len(timesteps):
        raise UserError(f"{system.where}: {len(inputs)} states are recorded, but {len(timesteps)} timesteps")
    model = system.model()
    context = prefill(model, labels, SampleConfig(guidance_scale=2.0))
    positions = torch.arange(inputs[0].shape[1])[None].expand(len(labels), -1)
    step = make_step(model, context, positions, positions.shape[1], guidance)
    return [step.predict(x, t) for x, t in zip(inputs, timesteps, strict=True)]
