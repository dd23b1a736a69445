"""Replaying LatentLM's recorded train steps (shared/parity/neighbours/latentlm), of the causal model and of
its DiT baseline, and its schedules.

Shape letters: N images, L tokens, R noised copies of each, P numbers of a token, D width.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.multistep import MultistepSampler
from causalfusion.errors import UserError
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.replay_model import RecordedSystem, json_list, outputs_of
from causalfusion.interop.systems.replay_training import (
    TrainPass,
    compare_gradients,
    dropped_labels,
    precise,
    raster_plan,
    train_pass,
)
from causalfusion.model.positions import raster_rotation
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import pack_next
from causalfusion.train.draws import Draws

TOLERANCES = {
    "predictions": 5e-6,
    "losses": 2e-6,
    "gradients": 5e-5,
    "caches": 2e-5,
    "sampling trajectories": 2e-5,
    "noise schedules": 1e-6,
    "position tables": 1e-6,
}
_SMALL = 0.01
"""Factor on weights in `small/out`, and those weights, as the README says."""
_SMALL_CAUSAL = r"noisy_x_embedder\..*|diffusion_blocks\.\d+\.mlp\.fc2\.weight"
_SMALL_BASELINE = r"x_embedder\..*|pos_embed|blocks\.\d+\.(attn\.proj|mlp\.fc2)\.weight"
_SOLVER = (
    r"dpm_(?P<steps>\d+)(_timestep_spacing_(?P<timestep_spacing>[a-z]+))?"
    r"(_lambda_min_clipped_(?P<lambda_min_clipped>-?[\d.]+))?"
)


def tokens_of(system: RecordedSystem, recorded: Tensor) -> Tensor:
    """(N, L, P) of latents (N, C, h, w), or of tokens as they are."""
    return system.tokens(recorded) if recorded.ndim == 4 else recorded


def like(system: RecordedSystem, tokens: Tensor, recorded: Tensor) -> Tensor:
    """Tokens (N, L, P) in the layout of what was recorded."""
    return system.latents(tokens) if recorded.ndim == 4 else tokens


def process_of(system: RecordedSystem) -> DDPM:
    assert isinstance(system.process, DDPM), "a system with a chain of noise levels"
    return system.process


def cases_of(r: Recording) -> list[dict[str, Any]]:
    """The settings of its cases. Raises UserError for a case without."""
    cases = json_list(r, "cases")
    if len(cases) < len(r.prefixes("case")) or not all(isinstance(case, dict) for case in cases):
        raise UserError(f"{r.path}: metadata cases has {len(cases)} cases, expected those of its tensors")
    return cases


def replay_train(r: Recording, system: RecordedSystem) -> None:
    """Replay X.train or X.dit_train: noised tokens, hidden states, both losses, gradients."""
    model, exact = system.model(), precise(system.model())
    passes = []
    for prefix, case in zip(r.prefixes("case"), cases_of(r), strict=False):
        labels = dropped_labels(r, prefix, model.config.null_label, float(case["class_dropout_prob"]))
        copies = int(case.get("batch_mul", 1)) if model.config.per_token else 1
        tokens, draws = tokens_of(system, r[prefix + "x"]), _draws(r, prefix, system, copies)
        model.zero_grad(set_to_none=True)
        passed = _replay_pass(r, prefix, system, model, tokens, labels, draws)
        passes.append((prefix, tokens, labels, draws))
        r.compare(prefix + "loss", passed.loss.reshape(1), "losses")
        names = [str(name) for name in case["grad_norm_names"]]
        compare_gradients(r, prefix, system, model, names, keys_cancel=False)
        if prefix + "loss_fp64" in r:
            doubled = replace(draws, noise=draws.noise.double())
            loss = train_pass(system, exact, tokens.double(), labels, doubled).loss
            r.compare(prefix + "loss_fp64", loss.reshape(1), "losses")
    with torch.no_grad():
        if "small/out" in r and passes:
            _replay_small(r, system, *passes[0])
        if "eval/x" in r:
            _replay_eval(r, system, model)
        if "rope/cos" in r:
            index = torch.arange(model.config.num_tokens)
            # Their angles are products in float32, at most L.
            r.tolerances["position tables"] = max(1e-6, len(index) * 2.0**-24)
            cosines, sines = raster_rotation(index, model.config.rope, model.config.head_dim)[..., ::2]
            r.compare("rope/cos", cosines, "position tables")
            r.compare("rope/sin", sines, "position tables")


def _draws(r: Recording, prefix: str, system: RecordedSystem, copies: int) -> Draws:
    """Copies of an image stand one behind another in the recording."""
    config = system.released.model
    noise = tokens_of(system, r[prefix + "noise"]).unflatten(0, (-1, copies))
    levels = r[prefix + "timesteps"].unflatten(0, (-1, copies)).flatten(1)
    plan = raster_plan(len(noise), config.num_tokens, config.grid_width, one_each=config.per_token)
    return Draws(plan, levels, noise, torch.zeros(len(noise), dtype=torch.bool))


def _replay_pass(
    r: Recording,
    prefix: str,
    system: RecordedSystem,
    model: Transformer,
    tokens: Tensor,
    labels: Tensor,
    draws: Draws,
) -> TrainPass:
    copies, head = draws.noise.shape[1], model.head
    of_condition: list[Tensor] = []
    of_head: list[Tensor] = []
    with ExitStack() as stack:
        blocks = [stack.enter_context(outputs_of(block)) for block in model.blocks]
        if head is not None:
            of_condition = stack.enter_context(outputs_of(head.condition_in))
            of_head = stack.enter_context(outputs_of(head.blocks[-1]))
        passed = train_pass(system, model, tokens, labels, draws)
    for condition in of_condition:
        condition.retain_grad()
    passed.loss.backward()
    if head is not None:
        r.compare(prefix + "condition", of_condition[0], "predictions")
        gradient = of_condition[0].grad
        assert gradient is not None, "it was kept"
        r.compare(prefix + "grad_condition", gradient, "gradients")
        r.compare(prefix + "head_hidden", of_head[0][:1, : tokens.shape[1]], "predictions")
    r.compare(prefix + "hidden", torch.stack([block[0][:2] for block in blocks]), "predictions")
    noised = passed.noised
    process = process_of(system)
    v = DDPM(replace(process.config, prediction_type="v_prediction", variance="fixed"))
    velocity = v.target(noised.clean, noised.noise, noised.levels)
    out = passed.predictions.image.detach()
    for name, value, quantity in (
        ("x_noisy", noised.noised, "noised tokens"),
        ("velocity", velocity, "noised tokens"),
        ("out", out, "predictions"),
    ):
        if prefix + name in r:
            rows = value.unflatten(1, (copies, -1)).flatten(0, 1)
            r.compare(prefix + name, like(system, rows, r[prefix + name]), quantity)
    for name, target in (("loss_eps", noised.noise), ("loss_v", velocity)):
        r.compare(prefix + name, (out - target).square().mean().reshape(1), "losses")
    return passed


def _replay_small(
    r: Recording, system: RecordedSystem, prefix: str, tokens: Tensor, labels: Tensor, draws: Draws
) -> None:
    """The head for the first image alone; the baseline for all of them, none without its label."""
    causal = system.released.model.per_token
    pattern = _SMALL_CAUSAL if causal else _SMALL_BASELINE
    small = system.model(_SMALL, lambda name: bool(re.fullmatch(pattern, name)))
    if causal:
        tokens, labels, draws = tokens[:1], labels[:1], draws.slice(slice(0, 1))
    else:
        labels = r[prefix + "y"]
    out = train_pass(system, small, tokens, labels, draws).predictions.image
    rows = out.unflatten(1, (draws.noise.shape[1], -1)).flatten(0, 1)
    r.compare("small/out", like(system, rows, r["small/out"]), "norm probes")


def _replay_eval(r: Recording, system: RecordedSystem, model: Transformer) -> None:
    """Conditions of all tokens in one pass."""
    assert model.head is not None, "a system with a per-token head"
    tokens, config = tokens_of(system, r["eval/x"]), model.config
    plan = raster_plan(len(tokens), tokens.shape[1], config.grid_width, one_each=True)
    for name, labels in (("condition", "y"), ("condition_null", "y_null")):
        if f"eval/{labels}" in r:
            sequence = pack_next(r[f"eval/{labels}"], config.num_condition_tokens, tokens, plan)
            r.compare(f"eval/{name}", model.head.condition_in(model(sequence).condition), "predictions")


def replay_schedules(r: Recording, system: RecordedSystem) -> None:
    """Replay `<beta schedule>/<table>`, and `dpm_<K>[_<option>_<value>]/` of the solver on the cosine
    schedule."""
    for name in sorted(r.tensors):
        spec, _, table = name.partition("/")
        solver = re.fullmatch(_SOLVER, spec)
        if solver:
            cosine = process_of(system.with_diffusion(beta_schedule="cosine"))
            options = {key: value for key, value in solver.groupdict().items() if value is not None}
            settings = solver_settings(int(options.pop("steps")), 1.0, options, str(r.path))
            compare_solver(r, f"{spec}/", solver_of(cosine, settings))
        elif re.fullmatch(r"[a-z_]+", spec) and table in ("alphas_cumprod", "betas"):
            schedule = process_of(system.with_diffusion(beta_schedule=spec)).schedule
            r.compare(name, torch.from_numpy(getattr(schedule, table)), "noise schedules")


def solver_settings(steps: int, scale: float, options: dict[str, Any], where: str) -> SampleConfig:
    """Our settings of the recorded solver. Raises UserError for an option that is not known."""
    unknown = sorted(options.keys() - {"timestep_spacing", "lambda_min_clipped"})
    if unknown:
        raise UserError(f"{where}: the solver's option {unknown[0]} is not known")
    return SampleConfig(
        sampler="dpm++",
        diffusion_steps=[steps],
        guidance_scale=scale,
        step_spacing=options.get("timestep_spacing", "linspace"),
        least_log_snr=float(options.get("lambda_min_clipped", -100.0)),
    )


def solver_of(process: DDPM, config: SampleConfig) -> MultistepSampler:
    sampler = process.sampler(config, *config.diffusion_steps)
    assert isinstance(sampler, MultistepSampler), "of the settings of `solver_settings`"
    return sampler


def compare_solver(r: Recording, there: str, sampler: MultistepSampler) -> None:
    """Its timesteps, and noise over signal at them."""
    r.compare(there + "timesteps", torch.tensor(sampler.timesteps), "timesteps")
    r.compare(there + "sigmas", torch.tensor(sampler.scales), "noise schedules")
