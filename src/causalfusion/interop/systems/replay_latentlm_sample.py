"""Replaying LatentLM's recorded sampling by our own: token by token with a cache, and its DiT baseline.

Shape letters: B images, L tokens, K diffusion steps, P numbers of a token, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.generate.ar_step import NextTokenStep, make_step
from causalfusion.generate.context import prefill
from causalfusion.generate.guidance import Guidance
from causalfusion.generate.tokens import StepEvent, generate_tokens
from causalfusion.interop.recording import Recording
from causalfusion.interop.reference_generation import RecordedNoise
from causalfusion.interop.systems.replay_dit import predictions_at
from causalfusion.interop.systems.replay_latentlm import (
    cases_of,
    compare_solver,
    like,
    process_of,
    solver_of,
    solver_settings,
    tokens_of,
)
from causalfusion.interop.systems.replay_model import RecordedSystem, sample_freely
from causalfusion.model.transformer import Transformer

_EXPLOSIVE, _LARGE = 1e-4, 100.0
"""Tolerance of trajectories with states above the second number, or of a single step, which magnifies an
error as much."""


@torch.no_grad()
def replay_sample(r: Recording, system: RecordedSystem) -> None:
    """Replay X.sample: every case from recorded tokens, and as a free run."""
    model = system.model()
    for prefix, case in zip(r.prefixes("case"), cases_of(r), strict=False):
        config = solver_settings(int(case["steps"]), float(case["cfg"]), case.get("opts") or {}, str(r.path))
        compare_solver(r, prefix, solver_of(process_of(system), config))
        with _tolerance(r, prefix, config):
            _replay_from_recorded(r, prefix, system, model, config)
            _replay_freely(r, prefix, system, model, config)


@contextmanager
def _tolerance(r: Recording, prefix: str, config: SampleConfig) -> Iterator[None]:
    usual = dict(r.tolerances)
    if float(r[prefix + "x_steps"].abs().max()) > _LARGE or config.diffusion_steps == [1]:
        r.tolerances["sampling trajectories"] = _EXPLOSIVE
    try:
        yield
    finally:
        r.tolerances = usual


def _labels(r: Recording, prefix: str, model: Transformer) -> Tensor:
    """(B,); the null labels of guidance stand behind them."""
    both = r[prefix + "y2"]
    labels, null = both.chunk(2)
    r.check(prefix + "y2 (null)", torch.full_like(null, model.config.null_label), null, "labels")
    return labels


def _replay_from_recorded(
    r: Recording, prefix: str, system: RecordedSystem, model: Transformer, config: SampleConfig
) -> None:
    """Conditions, the cache, and guided outputs, where the tokens before are the recorded ones."""
    assert model.head is not None, "a system with a per-token head"
    labels, final = _labels(r, prefix, model), tokens_of(system, r[prefix + "final"])
    # Rows without the label are recorded even where guidance is off.
    context = prefill(model, labels, SampleConfig(guidance_scale=2.0))
    sampler = solver_of(process_of(system), config)
    positions = torch.arange(model.config.num_tokens)[None].expand(len(labels), -1)
    conditions, outputs = [], []
    recorded = len(r[prefix + "model_out"]) if prefix + "model_out" in r else 0
    for number in range(model.config.num_tokens):
        step = make_step(model, context, positions[:, number:], 1, Guidance(config.guidance_scale))
        assert isinstance(step, NextTokenStep), "a head that asks by the token before"
        conditions.append(model.head.condition_in(step.condition))
        if number < recorded:
            states = [r[prefix + "z"][number], *r[prefix + "x_steps"][number][:-1]]
            calls = zip(states, sampler.timesteps, strict=True)
            outputs.append(torch.stack([step.predict(x[:, None], told)[:, 0] for x, told in calls]))
        if number + 1 < model.config.num_tokens:
            context = step.append(final[:, number : number + 1])
    r.compare(prefix + "condition", torch.cat(conditions, dim=1), "caches")
    if outputs:
        r.compare(prefix + "model_out", torch.stack(outputs), "sampling trajectories")
    for name, part in (("key", context.cache.k), ("value", context.cache.v)):
        # (layers, rows, heads, T, H); the first conditional and the first unconditional row are recorded.
        cached = part[:, :: len(labels), :, : context.cache.length].transpose(2, 3)
        r.compare(f"{prefix}cache/{name}", cached, "caches")


def _replay_freely(
    r: Recording, prefix: str, system: RecordedSystem, model: Transformer, config: SampleConfig
) -> None:
    count = model.config.num_tokens
    config = SampleConfig(**{**vars(config), "num_ar_steps": count, "order": "raster"})
    labels, z = _labels(r, prefix, model), r[prefix + "z"].transpose(0, 1)
    order, states = torch.arange(count), [[] for _ in range(count)]

    def keep(event: StepEvent) -> None:
        states[event.ar_step - 1].append(event.tokens[:, 0])

    tokens = generate_tokens(
        model,
        process_of(system),
        config,
        prefill(model, labels, config),
        order[None].expand(len(labels), -1),
        [1] * count,
        RecordedNoise(z, z[None], order),
        keep,
    )
    trajectories = torch.stack([torch.stack(of_token) for of_token in states])
    r.compare(prefix + "x_steps", trajectories, "sampling trajectories", "running freely")
    final = like(system, tokens, r[prefix + "final"])
    r.compare(prefix + "final", final, "sampling trajectories", "running freely")


@torch.no_grad()
def replay_baseline_sample(r: Recording, system: RecordedSystem) -> None:
    """Replay X.dit_sample: outputs for recorded states, and every case as a free run."""
    model = system.model()
    for prefix, case in zip(r.prefixes("case"), cases_of(r), strict=False):
        config = solver_settings(int(case["steps"]), float(case["cfg"]), case.get("opts") or {}, str(r.path))
        sampler, labels = solver_of(process_of(system), config), _labels(r, prefix, model)
        compare_solver(r, prefix, sampler)
        z, recorded = r[prefix + "z"], r[prefix + "x_steps"]
        states = [tokens_of(system, x) for x in (z, *recorded[:-1])]
        guidance = Guidance(config.guidance_scale)
        outputs = predictions_at(system, states, sampler.timesteps, labels, guidance)
        with _tolerance(r, prefix, config):
            ours = torch.stack([like(system, out, z) for out in outputs])
            r.compare(prefix + "model_out", ours, "sampling trajectories")
            events = sample_freely(system, model, config, labels, tokens_of(system, z))
            free = torch.stack([like(system, event.tokens, z) for event in events])
            r.compare(prefix + "x_steps", free, "sampling trajectories", "running freely")
            r.compare(prefix + "final", free[-1], "sampling trajectories", "running freely")
