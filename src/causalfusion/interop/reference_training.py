"""Replaying recorded training cases: masks, predictions, the loss and its gradients.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causalfusion.codec.patches import patchify
from causalfusion.config import FactorizationConfig, RunConfig, TrainConfig
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, ar_step_of, loss_weights
from causalfusion.interop.recording import Recording
from causalfusion.interop.reference_model import Reference
from causalfusion.losses import weighted_mean
from causalfusion.mask import dense_mask
from causalfusion.model.attention import AttentionBackend
from causalfusion.model.transformer import Predictions, Transformer
from causalfusion.sequence import PackedSequence
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective, TokenBatch

K_NORM_BIAS = "attn.k_norm.bias"
"""Weight whose gradient is zero except for rounding: it adds the same number to every logit of a query."""


@dataclass(frozen=True)
class RecordedBatch:
    """A recorded batch with its random draws, as a train step takes them."""

    tokens: Tensor
    """Clean tokens, (B, L, P), in raster order."""
    labels: Tensor
    draws: Draws

    def in_float64(self) -> RecordedBatch:
        draws = dataclasses.replace(self.draws, noise=self.draws.noise.double())
        return RecordedBatch(self.tokens.double(), self.labels, draws)


@dataclass(frozen=True)
class ForwardPass:
    """Intermediate results of a train step."""

    sequence: PackedSequence
    prediction: Tensor
    errors: Tensor


def read_batch(
    recording: Recording, prefix: str, reference: Reference, class_dropout: float
) -> RecordedBatch:
    """The batch recorded under a prefix. Adds checks of the tensors that follow from it without a model."""
    r, size = recording, reference.patch_size
    x0, noise, timesteps = r[prefix + "x0"], r[prefix + "noise"], r[prefix + "t"]
    num_tokens = reference.config.num_tokens
    if int(r[prefix + "split_sizes"].sum()) != num_tokens:
        raise UserError(f"{r.path}: {prefix}split_sizes do not add up to the {num_tokens} tokens")
    order = r[prefix + "shuffle_rand"].argsort(dim=1)
    plan = Plan(order, ar_step_of(r[prefix + "split_sizes"].tolist())[None], reference.config.grid_width)
    labels = r[prefix + "y"]
    dropped = torch.zeros(len(labels), dtype=torch.bool)
    if prefix + "drop_rand" in r:
        dropped = r[prefix + "drop_rand"] < class_dropout
    starts = torch.searchsorted(plan.ar_step[0], torch.arange(1, plan.num_ar_steps + 2))
    r.compare(prefix + "ids_shuffle", order, "orders")
    r.compare(prefix + "cumsum", starts, "orders")
    r.compare(prefix + "y_effective", labels.where(~dropped, reference.config.null_label), "labels")
    r.compare(prefix + "xt", reference.process.add_noise(x0, noise, timesteps), "noised tokens")
    shared = timesteps[:, None]
    return RecordedBatch(
        patchify(x0, size), labels, Draws(plan, shared, patchify(noise, size)[:, None], dropped)
    )


def forward_pass(
    model: Transformer, reference: Reference, batch: RecordedBatch, backend: AttentionBackend = "auto"
) -> ForwardPass:
    """The forward pass of a train step, with the model's input and output captured by a hook."""
    captured: list[tuple[PackedSequence, Tensor]] = []

    def capture(module: nn.Module, args: tuple[PackedSequence, ...], output: Predictions) -> None:
        captured.append((args[0], output.image))

    handle = model.register_forward_hook(capture)
    try:
        config = RunConfig(model=model.config, train=TrainConfig(attention=backend))
        objective = Objective(config, reference.process)
        tokens = TokenBatch(batch.tokens, batch.labels, torch.arange(len(batch.tokens)))
        errors = objective.errors(model, objective.arrange(tokens, batch.draws)).image
    finally:
        handle.remove()
    return ForwardPass(*captured[0], errors)


def training_loss(errors: Tensor, plan: Plan, weighting: FactorizationConfig) -> Tensor:
    """The mean of the squared errors with AR weights."""
    return weighted_mean(errors, loss_weights(plan.ar_step, weighting))


def compare_mask(recording: Recording, prefix: str, sequence: PackedSequence) -> None:
    """Compare the mask with the reference's, which is 1 where attention is blocked."""
    ours = ~dense_mask(sequence.clean, sequence.ar_step)[0, 0]
    recording.compare(prefix + "attn_mask", ours, "masks")


def replay_training(recording: Recording, reference: Reference) -> None:
    """Replay X.train: masks, AR weights, predictions, errors, losses and gradients of every case."""
    cases = recording.json("cases")
    model = reference.model()
    precise = in_float64(reference.model())
    for prefix in recording.prefixes("case"):
        case = cases.get(prefix[:-1])
        if not isinstance(case, dict):
            raise UserError(f"{recording.path}: metadata cases lacks {prefix[:-1]}")
        weighting = ar_weighting(case.get("ar"), f"{recording.path}: {prefix[:-1]}")
        dropout = float(case.get("class_dropout_prob", reference.class_dropout))
        batch = read_batch(recording, prefix, reference, dropout)
        plan = batch.draws.plan
        compare_weights(recording, prefix, plan, weighting)
        model.zero_grad(set_to_none=True)
        passed = forward_pass(model, reference, batch)
        loss = training_loss(passed.errors, plan, weighting)
        loss.backward()
        compare_mask(recording, prefix, passed.sequence)
        recording.compare(prefix + "eps_pred", passed.prediction, "predictions")
        recording.compare(prefix + "sq_err", passed.errors, "squared errors")
        recording.compare(prefix + "loss", loss.reshape(1), "losses")
        _compare_gradients(recording, prefix, model, reference)
        if prefix + "loss_fp64" in recording:
            exact = forward_pass(precise, reference, batch.in_float64())
            loss = training_loss(exact.errors, plan, weighting)
            recording.compare(prefix + "loss_fp64", loss.reshape(1), "losses")


def ar_weighting(values: Any, where: str) -> FactorizationConfig:
    """The settings of our AR loss weights for a recorded [largest, smallest, form]. Raises UserError."""
    if not (isinstance(values, list) and len(values) == 3 and values[2] in ("linear", "cosine")):
        raise UserError(f"{where}: ar is {values!r}; expected [max_weight, min_weight, linear or cosine]")
    return FactorizationConfig(
        loss_weight=values[2], loss_weight_first=float(values[0]), loss_weight_last=float(values[1])
    )


def compare_weights(recording: Recording, prefix: str, plan: Plan, weighting: FactorizationConfig) -> None:
    """Compare the AR weights. The reference stores a single one if all are equal."""
    name = prefix + "ar_weights"
    if name in recording:
        ours = loss_weights(plan.ar_step, weighting)[0]
        single = recording[name].numel() == 1 and bool((ours == ours[0]).all())
        recording.compare(name, ours[:1] if single else ours, "AR weights")


def _compare_gradients(recording: Recording, prefix: str, model: Transformer, reference: Reference) -> None:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = reference.official_tensors(
        model, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained}
    )
    compare_parameters(recording, prefix + "grad/", gradients, "gradients")
    norms = {name: gradient.double().norm() for name, gradient in gradients.items()}
    if not reference.learnable_positions:
        del norms["pos_embed"]
    total = torch.stack(list(norms.values())).norm().reshape(1)
    recording.compare(prefix + "grad_global_norm", total, "gradients")
    if prefix + "grad_norms" in recording:
        names = _parameter_names(recording, norms)
        recorded = recording[prefix + "grad_norms"]
        kept = torch.tensor([not name.endswith(K_NORM_BIAS) for name in names])
        # As ratios, because an error in a small norm would be hidden by the largest one.
        ours = torch.stack([norms[name] for name in names])
        ratio = torch.where(recorded > 0, ours / recorded, 1 + ours)
        recording.check(prefix + "grad_norms", ratio[kept], torch.ones_like(ratio)[kept], "gradients")


def _parameter_names(recording: Recording, norms: dict[str, Tensor]) -> list[str]:
    try:
        names = json.loads(recording.setting("grad_norm_names"))
    except ValueError as error:
        raise UserError(f"{recording.path}: metadata grad_norm_names is not valid JSON ({error})") from error
    different = sorted(set(names) ^ norms.keys())
    if different:
        raise UserError(f"{recording.path}: {different[0]} is trained by one side only, see grad_norm_names")
    return names


def compare_parameters(recording: Recording, prefix: str, ours: dict[str, Tensor], quantity: str) -> None:
    """Compare the tensors recorded under a prefix, by official name, except gradients that are only
    rounding."""
    for name in recording.below(prefix):
        if name.endswith(K_NORM_BIAS):
            recording.used.add(prefix + name)
        elif name in ours:
            recording.compare(prefix + name, ours[name], quantity)


def in_float64(model: Transformer) -> Transformer:
    """The model in float64. The timestep's sinusoid stays float32, as in the reference, and is cast on entry
    to the model."""
    model = model.double()
    embedding = model.timestep_embedding if model.head is None else model.head.timestep_embedding

    def cast(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.double() for value in args)

    embedding.fc1.register_forward_pre_hook(cast)
    return model
