"""Replaying recorded optimizer steps: AdamW, clipping and EMA from the recorded weights.

AdamW's first step of a parameter is the sign of its gradient times the learning rate, however small the
gradient (eps is 1e-15). If a gradient is zero except for rounding, its sign, and with it 2 lr of the
parameter, is arbitrary: a float32 recording has whichever sign its rounding gave. If the steps do not match,
the replay therefore tries dense attention, which rounds differently. If that does not match either, it may
use the recorded signs of a few elements below the float32 noise of their tensor, provided that everything
matches then. A note says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from causalfusion.config import FactorizationConfig, TrainConfig
from causalfusion.errors import UserError
from causalfusion.interop.recording import Check, Recording
from causalfusion.interop.reference_model import Reference
from causalfusion.interop.reference_training import (
    K_NORM_BIAS,
    RecordedBatch,
    ar_weighting,
    compare_parameters,
    compare_weights,
    forward_pass,
    read_batch,
    training_loss,
)
from causalfusion.model.attention import AttentionBackend
from causalfusion.model.transformer import Transformer
from causalfusion.train.ema import EMA
from causalfusion.train.optimizer import AnyOptimizer, make_optimizer

GRADIENT_NOISE = 6e-6
"""Error of float32 gradients, relative to the largest of their tensor, measured in the reference against
float64."""
MAX_SIGNS = 4
"""Number of signs that may be taken from the recording."""
MAX_CANDIDATES = 32
"""Number of doubtful signs that are tried."""


class DoubtfulSign(NamedTuple):
    """A gradient element whose sign is decided by rounding."""

    magnitude: float
    """|g|, relative to the tensor's largest."""
    train_step: int
    name: str
    place: int
    """Index into the flattened tensor."""


@dataclass(frozen=True)
class Optimization:
    """A recorded run: its settings, its batches, and the EMA decay of each step."""

    config: TrainConfig
    weighting: FactorizationConfig
    batches: list[RecordedBatch]
    ema_decays: list[float]


@dataclass(frozen=True)
class Outcome:
    """The result of replayed steps."""

    model: Transformer
    averages: dict[str, Tensor]
    losses: Tensor
    norms: Tensor
    doubtful: list[DoubtfulSign]


def replay_loop(recording: Recording, reference: Reference) -> None:
    """Replay X.loop: losses and gradient norms of the steps, parameters and EMA after them."""
    task = _read_task(recording, reference)
    outcome = _optimize(reference, task, ())
    checks = _compare(recording, reference, outcome, "")
    if _worst(checks) > 1:
        dense = _compare(
            recording, reference, _optimize(reference, task, (), "dense"), "with dense attention"
        )
        if _worst(dense) <= 1:
            checks = dense
        else:
            checks = _with_signs(recording, reference, task, outcome.doubtful[:MAX_CANDIDATES], checks)
    recording.checks += checks


def _read_task(recording: Recording, reference: Reference) -> Optimization:
    settings = recording.json("optimiser")
    try:
        config = TrainConfig(
            lr=settings["lr"],
            beta1=settings["betas"][0],
            beta2=settings["betas"][1],
            eps=settings["eps"],
            weight_decay=settings["weight_decay"],
            max_grad_norm=settings["clip"],
        )
        decays = [float(decay) for decay in settings["ema_decay"]]
        weighting = ar_weighting(settings["ar"], f"{recording.path}: metadata optimiser")
    except (LookupError, TypeError) as error:
        raise UserError(f"{recording.path}: metadata optimiser is incomplete ({error!r})") from error
    prefixes = recording.prefixes("step")
    if len(decays) != len(prefixes):
        raise UserError(f"{recording.path}: {len(decays)} EMA decays for {len(prefixes)} recorded steps")
    batches = [read_batch(recording, prefix, reference, reference.class_dropout) for prefix in prefixes]
    for prefix, batch in zip(prefixes, batches, strict=True):
        compare_weights(recording, prefix, batch.draws.plan, weighting)
    return Optimization(config, weighting, batches, decays)


def _optimize(
    reference: Reference,
    task: Optimization,
    flipped: Sequence[DoubtfulSign],
    backend: AttentionBackend = "auto",
) -> Outcome:
    """Run the recorded steps, with some doubtful gradients negated."""
    model = reference.model()
    optimizer = make_optimizer(model.parameters(), task.config)
    ema = EMA(model.named_parameters())
    losses, norms, doubtful = [], [], []
    for train_step, (batch, decay) in enumerate(zip(task.batches, task.ema_decays, strict=True)):
        loss = training_loss(
            forward_pass(model, reference, batch, backend).errors, batch.draws.plan, task.weighting
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        doubtful += _doubtful_signs(model, optimizer, train_step)
        for sign in flipped:
            gradient = model.get_parameter(sign.name).grad
            if sign.train_step == train_step and gradient is not None:
                gradient.view(-1)[sign.place].neg_()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), task.config.max_grad_norm))
        optimizer.step()
        ema.update(decay)
        losses.append(loss.detach())
    averages = {name: p.detach() for name, p in model.named_parameters()} | ema.state_dict()
    return Outcome(model, averages, torch.stack(losses), torch.stack(norms), sorted(doubtful))


def _doubtful_signs(model: Transformer, optimizer: AnyOptimizer, train_step: int) -> list[DoubtfulSign]:
    """Elements whose first nonzero gradient is in this step, and is below the noise."""
    found = []
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None or name.endswith(K_NORM_BIAS):
            continue
        magnitude = gradient.abs() / gradient.abs().max()
        doubtful = (magnitude > 0) & (magnitude < GRADIENT_NOISE)
        if parameter in optimizer.state:
            doubtful &= optimizer.state[parameter]["exp_avg_sq"] == 0
        for place in doubtful.view(-1).nonzero()[:, 0].tolist():
            found.append(DoubtfulSign(float(magnitude.view(-1)[place]), train_step, name, place))
    return found


def _with_signs(
    recording: Recording,
    reference: Reference,
    task: Optimization,
    doubtful: Sequence[DoubtfulSign],
    plain: list[Check],
) -> list[Check]:
    """The checks with a few doubtful signs taken from the recording, if all pass with them; else `plain`."""
    taken: list[DoubtfulSign] = []
    best = _worst(plain)
    while len(taken) < MAX_SIGNS:
        target = best / 2
        note = f"{len(taken) + 1} gradient sign(s) below float32 noise taken as recorded (AdamW steps ±lr)"
        improving = None
        for sign in doubtful:
            if sign in taken:
                continue
            checks = _compare(recording, reference, _optimize(reference, task, [*taken, sign]), note)
            if _worst(checks) <= 1:
                return checks
            if _worst(checks) < best:
                best, improving = _worst(checks), sign
        if improving is None or best > target:
            break
        taken.append(improving)
    return plain


def _compare(recording: Recording, reference: Reference, outcome: Outcome, note: str) -> list[Check]:
    before = len(recording.checks)
    recording.compare("losses", outcome.losses, "losses")
    recording.compare("grad_norms_before_clip", outcome.norms, "gradients")
    current = {name: p.detach() for name, p in outcome.model.named_parameters()}
    for prefix, ours, quantity in (
        ("after/", current, "parameters after steps"),
        ("ema/", outcome.averages, "EMA after steps"),
    ):
        official = reference.official_tensors(outcome.model, ours)
        compare_parameters(recording, prefix, official, quantity)
    checks = recording.checks[before:]
    del recording.checks[before:]
    return [dataclasses.replace(check, note=note) for check in checks]


def _worst(checks: Sequence[Check]) -> float:
    """The largest error, as a multiple of its tolerance."""
    return max((check.severity / check.tolerance for check in checks), default=0.0)
