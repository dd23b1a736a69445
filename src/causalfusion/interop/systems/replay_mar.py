"""Replaying recordings of MAR (shared/parity/neighbours/mar): its train steps, its head, and its schedules.

Shape letters: N images, L tokens, m masked tokens of an image, R noised copies of each, P numbers of a token
(d in the README), D width.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalfusion.codec.patches import patchify
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.schedule import respacing_timesteps
from causalfusion.diffusion.variance import variational_term
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, masked_cosine_split, places_of
from causalfusion.generate.guidance import Guidance
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.links import channels_last
from causalfusion.interop.systems.replay_model import RecordedSystem, json_list, outputs_of
from causalfusion.interop.systems.replay_training import (
    compare_gradients,
    compare_norms,
    precise,
    train_pass,
)
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, pack_bidirectional
from causalfusion.train.draws import Draws

TOLERANCES = {
    "predictions": 5e-6,
    "losses": 2e-6,
    "squared errors": 1e-5,
    "variational terms": 5e-5,
    "gradients": 5e-5,
    "sampling trajectories": 2e-5,
}
HEAD = "diffloss.net."
_SMALL = 0.01
"""Factor on weights of the head in `small/net_out`, and those weights, as the README says."""


def _is_small(name: str) -> bool:
    return bool(re.fullmatch(rf"{re.escape(HEAD)}(input_proj|res_blocks\.\d+\.mlp\.2)\.(weight|bias)", name))


def process_of(system: RecordedSystem) -> DDPM:
    assert isinstance(system.process, DDPM), "a system with a chain of noise levels"
    return system.process


class Order:
    """Their order of the numbers of a token, and ours."""

    def __init__(self, system: RecordedSystem) -> None:
        model, patch = system.released.model, system.released.patch_size
        self.size = model.token_dim
        self.to_ours = channels_last(self.size // patch**2, patch)
        self.to_theirs = self.to_ours.argsort()

    def ours(self, tokens: Tensor) -> Tensor:
        """Tokens, or outputs with variances, with their numbers in our order."""
        return torch.cat([part[..., self.to_ours] for part in tokens.split(self.size, dim=-1)], dim=-1)

    def theirs(self, tokens: Tensor) -> Tensor:
        return torch.cat([part[..., self.to_theirs] for part in tokens.split(self.size, dim=-1)], dim=-1)


class WholeSequence(PackedSequence):
    """A sequence of which every token has an output."""

    @property
    def first_output(self) -> int:
        return 0


def all_conditions(model: Transformer, labels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """(N, L, D): what the transformer gives for all tokens (N, L, P), masked (N, L) or not."""
    width, buffer = model.config.grid_width, model.config.num_condition_tokens
    order = mask.bool().int().argsort(dim=1, stable=True)
    count = int((~mask.bool()[0]).sum())
    known, asked = order[:, :count], order[:, count:]
    values = tokens.gather(1, known[:, :, None].expand(-1, -1, tokens.shape[2]))
    sequence = pack_bidirectional(labels, buffer, values, places_of(known, width), places_of(asked, width))
    with outputs_of(model.norm_out) as outputs:
        model(WholeSequence(sequence.segments))
    raster = outputs[0][:, buffer:].gather(
        1, order.argsort(dim=1)[:, :, None].expand(-1, -1, outputs[0].shape[2])
    )
    return raster if model.condition_position is None else raster + model.condition_position


def losses_of(
    system: RecordedSystem, outputs: Tensor, clean: Tensor, noise: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean squared error, variational term in bits) of rows (n, P or 2 P), in our order."""
    process, size = process_of(system), clean.shape[-1]
    tokens = process.noise(clean[:, None], noise[:, None], t)
    epsilon = outputs[:, None, :size].detach()
    predicted = process.to_clean(epsilon, tokens.noised, t)
    bits = variational_term(
        process.schedule, predicted, tokens.clean, tokens.noised, outputs[:, None, size:], t
    )
    return (outputs[:, :size] - noise).square().mean(1), bits.mean((1, 2))


# --- train steps --------------------------------------------------------------------------------------


def replay_train(r: Recording, system: RecordedSystem) -> None:
    """Replay X.train: masks, the encoder's input and output, conditions, losses and gradients."""
    cases, order = json_list(r, "cases"), Order(system)
    model, exact = system.model(), precise(system.model())
    patch = system.released.patch_size
    for number, prefix in enumerate(r.prefixes("case")):
        case = _case(cases, number, r)
        r.compare(prefix + "tokens", order.theirs(patchify(r[prefix + "imgs"], patch)), "noised tokens")
        dropped = r[prefix + "drop_rand"] < float(case["label_drop_prob"])
        r.compare(prefix + "drop_mask", dropped, "labels")
        labels = torch.where(dropped, model.config.null_label, r[prefix + "labels"])
        draws, mask = _draws(r, prefix, system, int(case["diffusion_batch_mul"]))
        tokens = order.ours(r[prefix + "tokens"])
        model.zero_grad(set_to_none=True)
        assert model.encoder is not None, "a system with an encoder"
        with outputs_of(model.encoder.norm_out) as encoded:
            passed = train_pass(system, model, tokens, labels, draws)
        r.compare(prefix + "enc_out", encoded[0], "predictions")
        passed.loss.backward()
        _compare_condition_gradient(r, prefix, passed.predictions.condition, draws, mask)
        r.compare(prefix + "loss", passed.loss.reshape(1), "losses")
        compare_gradients(r, prefix, system, model, [str(name) for name in case["grad_norm_names"]])
        if prefix + "loss_fp64" in r:
            doubled = replace(draws, noise=draws.noise.double())
            loss = train_pass(system, exact, tokens.double(), labels, doubled).loss
            r.compare(prefix + "loss_fp64", loss.reshape(1), "losses")
        _compare_rows(r, prefix, system, model, labels, mask)


def _case(cases: list[Any], number: int, r: Recording) -> dict[str, Any]:
    if number >= len(cases) or not isinstance(cases[number], dict):
        raise UserError(f"{r.path}: metadata cases has no case {number}")
    return cases[number]


def _draws(r: Recording, prefix: str, system: RecordedSystem, copies: int) -> tuple[Draws, Tensor]:
    """(the recorded draws as a train step of ours takes them, mask (N, L)): known tokens, then masked
    ones."""
    orders, config = r[prefix + "orders"], system.released.model
    num_images, length = orders.shape
    masked = math.ceil(length * float(r[prefix + "mask_rate"]))
    mask = torch.zeros(num_images, length).scatter(1, orders[:, :masked], 1.0)
    r.compare(prefix + "mask", mask, "masks")
    order = mask.int().argsort(dim=1, stable=True)
    position = torch.arange(length)
    ar_step = 1 + (position >= length - masked).long() if masked < length else torch.ones_like(position)
    noise = Order(system).ours(r[prefix + "noise"]).unflatten(0, (copies, num_images, length)).transpose(0, 1)
    levels = r[prefix + "t"].unflatten(0, (copies, num_images, length)).transpose(0, 1)
    levels = levels.gather(2, order[:, None].expand(-1, copies, -1)).flatten(1)
    plan = Plan(order, ar_step[None], config.grid_width)
    return Draws(plan, levels, noise, torch.zeros(num_images, dtype=torch.bool)), mask


def _compare_condition_gradient(
    r: Recording, prefix: str, condition: Tensor | None, draws: Draws, mask: Tensor
) -> None:
    assert condition is not None and condition.grad is not None, "its gradient was kept"
    asked = draws.plan.order[:, -condition.shape[1] :, None].expand_as(condition)
    gradient = condition.new_zeros(*mask.shape, condition.shape[2]).scatter(1, asked, condition.grad)
    r.compare(prefix + "grad_z", gradient, "gradients")


@torch.no_grad()
def _compare_rows(
    r: Recording, prefix: str, system: RecordedSystem, model: Transformer, labels: Tensor, mask: Tensor
) -> None:
    """All rows of the recording, also those of tokens that are not masked, which count nothing."""
    order, copies = Order(system), len(r[prefix + "t"]) // mask.numel()
    tokens, t = order.ours(r[prefix + "tokens"]), r[prefix + "t"]
    if prefix + "enc_in" in r:
        assert model.norm_in is not None, "a system with a norm of what enters"
        with outputs_of(model.norm_in) as entered:
            all_conditions(model, labels, tokens, torch.zeros_like(mask))
        r.compare(prefix + "enc_in", entered[0], "predictions")
    z = all_conditions(model, labels, tokens, mask)
    r.compare(prefix + "z", z, "predictions")
    clean, noise = tokens.flatten(0, 1).repeat(copies, 1), order.ours(r[prefix + "noise"])
    noised = process_of(system).add_noise(clean, noise, t)
    r.compare(prefix + "x_t", order.theirs(noised), "noised tokens")
    assert model.head is not None, "a system with a per-token head"
    condition = z.flatten(0, 1).repeat(copies, 1)
    outputs = model.head(condition[:, None], noised[:, None], t[:, None])[:, 0]
    r.compare(prefix + "net_out", order.theirs(outputs), "predictions")
    mse, bits = losses_of(system, outputs, clean, noise, t)
    r.compare(prefix + "mse", mse, "squared errors")
    r.compare(prefix + "vb", bits, "variational terms")
    counted = mask.flatten().repeat(copies)
    r.compare(prefix + "loss", (((mse + bits) * counted).sum() / counted.sum()).reshape(1), "losses", "rows")


# --- the head alone -----------------------------------------------------------------------------------


def replay_head(r: Recording, system: RecordedSystem) -> None:
    """Replay X.head: outputs, both terms of the loss, gradients, guidance, the norms' epsilons."""
    order, model = Order(system), system.model()
    z, t = r["z"].clone().requires_grad_(), r["t"]
    clean, noise = order.ours(r["x0"]), order.ours(r["noise"])
    noised = process_of(system).add_noise(clean, noise, t)
    r.compare("x_t", order.theirs(noised), "noised tokens")
    outputs = _head(model, z, noised, t)
    theirs = order.theirs(outputs)
    r.compare("net_out", theirs, "predictions")
    r.compare("eps", theirs[:, : clean.shape[1]], "predictions")
    r.compare("var", theirs[:, clean.shape[1] :], "predictions")
    mse, bits = losses_of(system, outputs, clean, noise, t)
    r.compare("mse", mse, "squared errors")
    r.compare("vb", bits, "variational terms")
    mask = r["mask"]
    loss = ((mse + bits) * mask).sum() / mask.sum()
    r.compare("loss", loss.reshape(1), "losses")
    loss.backward()
    r.compare("grad_z", z.grad if z.grad is not None else torch.zeros_like(z), "gradients")
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = {name.removeprefix(HEAD): value for name, value in system.official(gradients).items()}
    for name in r.below("grad/"):
        if name in ours:
            r.compare(f"grad/{name}", ours[name], "gradients")
    compare_norms(r, "", ours, None)
    with torch.no_grad():
        _compare_head_variants(r, system, model)


def _head(model: Transformer, z: Tensor, noised: Tensor, t: Tensor) -> Tensor:
    assert model.head is not None, "a system with a per-token head"
    return model.head(z[:, None], noised[:, None], t[:, None])[:, 0]


def _compare_head_variants(r: Recording, system: RecordedSystem, model: Transformer) -> None:
    order, z, t = Order(system), r["z"], r["t"]
    clean, noise = order.ours(r["x0"]), order.ours(r["noise"])
    if "loss_fp64" in r:
        outputs = _head(precise(system.model()), z.double(), _noised(system, clean, noise, t), t)
        mse, bits = losses_of(system, outputs, clean.double(), noise.double(), t)
        mask = r["mask"]
        loss = ((mse + bits) * mask).sum() / mask.sum()
        r.compare("loss_fp64", loss.reshape(1), "losses")
    if "small/net_out" in r:
        small = system.model(_SMALL, _is_small)
        outputs = _head(small, z, process_of(system).add_noise(clean, noise, t), t)
        r.compare("small/net_out", order.theirs(outputs), "norm probes")
    if "cfg_out" in r:
        noised = process_of(system).add_noise(clean, noise, t)
        both = noised.chunk(2)[0].repeat(2, 1)
        conditional, unconditional = _head(model, z, both, t).chunk(2)
        size = clean.shape[1]
        numbers = torch.arange(conditional.shape[1]) < size
        guided = Guidance(float(r["cfg_scale"]), numbers=numbers).combine(conditional, unconditional)
        halves = torch.cat([guided, torch.where(numbers, guided, unconditional)])
        r.compare("cfg_out", order.theirs(halves), "predictions")


def _noised(system: RecordedSystem, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return process_of(system).add_noise(clean.double(), noise.double(), t)


# --- schedules ----------------------------------------------------------------------------------------


def replay_schedules(r: Recording, system: RecordedSystem) -> None:
    """Replay `<respacing>/<table>`, and the numbers of masked tokens `mask_len/<L>_<K>`."""
    full = process_of(system).schedule
    for name in sorted(r.tensors):
        spec, _, table = name.partition("/")
        if spec == "mask_len" and re.fullmatch(r"\d+_\d+", table):
            r.compare(name, masks_left(*map(int, table.split("_"))), "masks")
            continue
        if not re.fullmatch(r"full|(ddim)?\d+(_\d+)*", spec) or not hasattr(full, table):
            continue  # reported as not replayed
        respacing = "" if spec == "full" else spec.replace("_", ",")
        chain = full.select(respacing_timesteps(full.num_timesteps, respacing))
        ours = torch.from_numpy(np.ascontiguousarray(getattr(chain, table)))
        r.compare(name, ours, "timesteps" if table == "timestep_map" else "noise schedules")


def masks_left(num_tokens: int, num_steps: int) -> Tensor:
    """(K,) tokens that are masked after each step, 1 after the last, whose mask is never used."""
    done = torch.tensor(masked_cosine_split(num_tokens, num_steps)).cumsum(0)
    return (num_tokens - done).clamp(min=1)
