"""Replaying recorded train steps of other systems by our own: errors, losses, gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from causalfusion.config import FactorizationConfig, RunConfig
from causalfusion.diffusion.process import NoisedTokens
from causalfusion.errors import UserError
from causalfusion.factorization import Plan
from causalfusion.interop.recording import Recording
from causalfusion.interop.reference_training import in_float64
from causalfusion.interop.systems.replay_model import RecordedSystem, json_list
from causalfusion.model.transformer import Predictions, Transformer
from causalfusion.sequence import PackedSequence
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective, TokenBatch

QKV_BIAS = "attn.qkv.bias"


@dataclass(frozen=True)
class TrainPass:
    """Intermediate results of a train step of ours."""

    sequence: PackedSequence
    predictions: Predictions
    noised: NoisedTokens
    errors: Tensor
    """(B, R*m, P)."""
    loss: Tensor


def train_pass(
    system: RecordedSystem, model: Transformer, tokens: Tensor, labels: Tensor, draws: Draws
) -> TrainPass:
    """One step with these tokens (B, L, P), labels (B,) and draws."""
    captured: list[tuple[PackedSequence, Predictions]] = []

    def capture(module: nn.Module, args: tuple[PackedSequence, ...], output: Predictions) -> None:
        captured.append((args[0], output))
        if output.condition is not None and output.condition.requires_grad:
            output.condition.retain_grad()

    one_each = model.config.head.ask == "previous"
    factorization = FactorizationConfig(
        loss_weight="none",
        timesteps_per_ar_step=draws.noise.shape[1],
        distribution="fixed",
        num_ar_steps=model.config.num_tokens if one_each else 1,
        order="raster",
    )
    run = RunConfig(model=model.config, diffusion=system.released.diffusion, factorization=factorization)
    objective = Objective(run, system.process)
    piece = objective.arrange(TokenBatch(tokens, labels, torch.arange(len(tokens))), draws)
    handle = model.register_forward_hook(capture)
    try:
        errors = objective.errors(model, piece).image
    finally:
        handle.remove()
    noised = piece.noised_from(objective.first_asked(piece), system.process)
    return TrainPass(*captured[0], noised, errors, objective.image_loss(errors, piece))


def replay_image_case(
    recording: Recording, prefix: str, system: RecordedSystem, clean: Tensor, levels: Tensor
) -> tuple[TrainPass, Transformer]:
    """A recorded train step of whole images (B, L, P) at one level each (B,): noised tokens and losses are
    compared. The model has its gradients."""
    config = system.released.model
    probability = float(system.settings.get("class_dropout_prob", 0.1))  # type: ignore[arg-type]
    labels = dropped_labels(recording, prefix, config.null_label, probability)
    noise = system.tokens(recording[prefix + "noise"])
    plan = raster_plan(len(clean), clean.shape[1], config.grid_width)
    draws = Draws(plan, levels[:, None], noise[:, None], torch.zeros(len(clean), dtype=torch.bool))
    model = system.model()
    passed = train_pass(system, model, clean, labels, draws)
    passed.loss.backward()
    recording.compare(prefix + "xt", system.latents(passed.noised.noised), "noised tokens")
    recording.compare(prefix + "loss_per_sample", passed.errors.mean((1, 2)), "losses")
    recording.compare(prefix + "loss", passed.loss.reshape(1), "losses")
    if prefix + "loss_fp64" in recording:
        draws = replace(draws, noise=draws.noise.double())
        loss = train_pass(system, precise(system.model()), clean.double(), labels, draws).loss
        recording.compare(prefix + "loss_fp64", loss.reshape(1), "losses")
    return passed, model


def raster_plan(num_images: int, num_tokens: int, grid_width: int, *, one_each: bool = False) -> Plan:
    """Raster order, all tokens in one AR step, or each in its own."""
    order = torch.arange(num_tokens)
    ar_step = order + 1 if one_each else torch.ones_like(order)
    return Plan(order[None].expand(num_images, -1), ar_step[None], grid_width)


def dropped_labels(recording: Recording, prefix: str, null_label: int, probability: float) -> Tensor:
    """The labels that are embedded, compared with the recorded ones."""
    labels, dropped = recording[prefix + "y"], recording[prefix + "drop_rand"] < probability
    labels = torch.where(dropped, null_label, labels)
    recording.compare(prefix + "y_effective", labels, "labels")
    return labels


def compare_gradients(
    recording: Recording,
    prefix: str,
    system: RecordedSystem,
    model: Transformer,
    names: Sequence[str] | None,
    *,
    keys_cancel: bool = True,
) -> None:
    """Gradients and their norms. With `keys_cancel`, without those of the keys' biases: each adds a constant
    to all logits of a query, so that they are only rounding."""
    ours = system.official(
        {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    )
    for name in recording.below(prefix + "grad/"):
        if name not in ours:
            continue  # reported as not replayed
        mine, theirs = ours[name], recording[f"{prefix}grad/{name}"]
        if keys_cancel and name.endswith(QKV_BIAS) and mine.shape == theirs.shape:
            mine, theirs = _without_keys(mine), _without_keys(theirs)
        recording.check(f"{prefix}grad/{name}", mine, theirs, "gradients")
    compare_norms(recording, prefix, ours, names)


def _without_keys(bias: Tensor) -> Tensor:
    queries, _, values = bias.chunk(3)
    return torch.cat([queries, values])


def compare_norms(
    recording: Recording, prefix: str, ours: Mapping[str, Tensor], names: Sequence[str] | None
) -> None:
    """The norms of all gradients, as ratios, and that of all together."""
    norms = {name: gradient.double().norm() for name, gradient in ours.items()}
    total = torch.stack(list(norms.values())).norm().reshape(1)
    recording.compare(prefix + "grad_global_norm", total, "gradients")
    for key in (prefix + "grad_norms", prefix + "grad_norms_fp64"):
        if key not in recording:
            continue
        if names is None:
            names = [str(name) for name in json_list(recording, "grad_norm_names")]
        different = sorted(set(names) ^ norms.keys())
        if different:
            raise UserError(f"{recording.path}: {different[0]} is trained by one side only")
        recorded = recording[key]
        if len(recorded) != len(names):
            raise UserError(f"{recording.path}: {key} has {len(recorded)} norms of {len(names)} weights")
        mine = torch.stack([norms[name] for name in names])
        # As ratios, because an error in a small norm would be hidden by the largest one.
        ratio = torch.where(recorded > 0, mine / recorded, 1 + mine)
        recording.check(key, ratio, torch.ones_like(ratio), "gradients")


def precise(model: Transformer) -> Transformer:
    """The model in float64, with a float32 sinusoid."""
    return in_float64(model)
