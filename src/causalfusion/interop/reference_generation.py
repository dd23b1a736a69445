"""Replaying recorded generation: the cache against the masked pass, guidance, and sampling trajectories.

Shape letters: B images, L image tokens, n tokens of an AR step, P token dimension, K diffusion steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.codec.patches import patchify, unpatchify
from causalfusion.config import SampleConfig
from causalfusion.diffusion.prediction import to_clean
from causalfusion.diffusion.samplers import make_sampler
from causalfusion.diffusion.schedule import NoiseSchedule, respacing_timesteps
from causalfusion.errors import UserError
from causalfusion.factorization import Plan
from causalfusion.generate.tokens import Context, StepEvent, _AutoregressiveStep, generate_tokens, prefill
from causalfusion.interop.recording import Recording
from causalfusion.interop.reference import Reference
from causalfusion.interop.reference_training import compare_mask, forward_pass, read_batch
from causalfusion.model.transformer import Transformer


class RecordedNoise:
    """Noise for `generate_tokens`: the recorded z (B, L, P) and noise_seq (K, B, L, P), in AR order."""

    def __init__(self, z: Tensor, noise_seq: Tensor, order: Tensor) -> None:
        self.z, self.noise_seq = z, noise_seq
        self.place_of_position = order.argsort()

    def initial(self, ar_step: int, positions: Tensor) -> Tensor:
        return self.z[:, self.place_of_position[positions[0]]]

    def during(self, ar_step: int, num_steps: int, positions: Tensor) -> Tensor:
        return self.noise_seq[:, :, self.place_of_position[positions[0]]]


@torch.no_grad()
def replay_inference(recording: Recording, reference: Reference) -> None:
    """X.infer: one masked pass, the same through the cache, and a whole autoregressive sampling."""
    r, model = recording, reference.model()
    batch = read_batch(r, "", reference, class_dropout=0.0)
    plan, timesteps = batch.draws.plan, r["t"]
    index = plan.order[:, :, None].expand_as(batch.tokens)
    clean = batch.tokens.gather(1, index)
    passed = forward_pass(model, reference, batch)
    noised = passed.sequence.segments[-1].values
    compare_mask(r, "", passed.sequence)
    r.compare("clean_tokens", clean, "noised tokens")
    r.compare("noised_tokens", noised, "noised tokens")
    r.compare("pos_tokens", F.embedding(plan.order, model.image_position), "noised tokens")
    r.compare("eps_masked", passed.prediction, "predictions")

    rows = [
        _one_image(model, batch.labels[n : n + 1], clean[n : n + 1], noised[n : n + 1], plan, n, int(timesteps[n]))
        for n in range(len(clean))
    ]
    joined = {name: torch.cat([row[name] for row in rows], dim=axis) for name, axis in _BATCH_AXIS.items()}
    for name, value in joined.items():
        r.compare(name, value, "caches" if name.startswith("kv_full") else "predictions")
    if r.below("ar/"):
        _replay_ar_sampling(r, reference, model, batch.labels)


_BATCH_AXIS = {
    "eps_cached": 0,
    "eps_last_group_cfg2": 0,
    "eps_last_group_oneshot_context": 0,
    "kv_full/k": 1,
    "kv_full/v": 1,
}


def _one_image(
    model: Transformer, label: Tensor, clean: Tensor, noised: Tensor, plan: Plan, n: int, timestep: int
) -> dict[str, Tensor]:
    """Predictions of image n against a cache, by itself, as a generation step has one timestep."""
    order, ar_step = plan.order[n : n + 1], plan.ar_step[0]
    last = ar_step == plan.num_ar_steps
    plain, guided = SampleConfig(), SampleConfig(guidance_scale=2.0)

    def step(context: Context, chosen: Tensor, number: int) -> _AutoregressiveStep:
        scale = guided.guidance_scale if context.guided else 1.0
        config = guided if context.guided else plain
        return _AutoregressiveStep(model, context, config, order[:, chosen], number, scale)

    predictions, outputs = [], {}
    context, doubled = prefill(model, label, plain), prefill(model, label, guided)
    for number in range(1, plan.num_ar_steps + 1):
        chosen = ar_step == number
        current = step(context, chosen, number)
        predictions.append(current.predict(noised[:, chosen], timestep))
        if number < plan.num_ar_steps:
            current.append(clean[:, chosen])
            step(doubled, chosen, number).append(clean[:, chosen])
    cache = context.cache
    outputs["kv_full/k"], outputs["kv_full/v"] = (part[:, :, :, : cache.length] for part in (cache.k, cache.v))
    outputs["eps_cached"] = torch.cat(predictions, dim=1)
    current = step(doubled, last, plan.num_ar_steps)
    outputs["eps_last_group_cfg2"] = current.predict(noised[:, last], timestep)

    oneshot = prefill(model, label, plain)
    if plan.num_ar_steps > 1:
        step(oneshot, ~last, 1).append(clean[:, ~last])
    outputs["eps_last_group_oneshot_context"] = step(oneshot, last, 2).predict(noised[:, last], timestep)
    return outputs


def _replay_ar_sampling(r: Recording, reference: Reference, model: Transformer, labels: Tensor) -> None:
    order, sizes = r["ar/order"], r["ar/split_sizes"].tolist()
    if sum(sizes) != len(order) or not torch.equal(order.sort().values, torch.arange(len(order))):
        raise UserError(f"{r.path}: ar/order and ar/split_sizes are not those of {len(order)} tokens")
    schedule = respaced(reference.schedule, r.setting("respace_ar"))
    config = _sampling(schedule, r.setting("cfg_ar"))
    tokens = generate_tokens(
        model,
        schedule,
        "epsilon",
        config,
        prefill(model, labels, config),
        order[None].expand(len(labels), -1),
        sizes,
        RecordedNoise(r["ar/z"], r["ar/noise_seq"], order),
    )
    r.compare("ar/tokens_shuffled", tokens, "sampling trajectories")
    r.compare("ar/tokens_raster", tokens[:, order.argsort()], "sampling trajectories")


@torch.no_grad()
def replay_sampling(recording: Recording, reference: Reference) -> None:
    """X.sample: plain diffusion, one AR step, both step by step on recorded inputs and running freely."""
    r, model = recording, reference.model()
    labels, z, noise_seq = r["y"], r["z"], r["noise_seq"]
    if "null_class" in r.metadata:
        ours = torch.tensor(reference.config.null_label)
        r.check("null_class", ours, torch.tensor(int(r.metadata["null_class"])), "labels")
    schedule = respaced(reference.schedule, r.setting("respace"))
    config = _sampling(schedule, r.setting("cfg_scale"))
    context = prefill(model, labels, config)
    r.compare("y_doubled", context.labels, "labels")
    r.compare("cond_tokens", model.class_embedding(context.labels), "predictions")
    for name, part in (("k", context.cache.k), ("v", context.cache.v)):
        r.compare(f"kv_cond/{name}", part[:, :, :, : context.cache.length], "caches")

    order = torch.arange(z.shape[1])
    positions = order[None].expand(len(z), -1)
    sampler = make_sampler(config, schedule, "epsilon", schedule.num_timesteps)
    r.compare("t_model", torch.tensor(sampler.timesteps), "timesteps")
    if "xt_seq" in r:
        inputs = [z, *r["xt_seq"][:-1]]
        step = _AutoregressiveStep(model, context, config, positions, 1, config.guidance_scale)
        guided = [step.predict(x, t) for x, t in zip(inputs, sampler.timesteps, strict=True)]
        r.compare("eps_seq", torch.stack(guided), "predictions")
        plain = SampleConfig()
        step = _AutoregressiveStep(model, prefill(model, labels, plain), plain, positions, 1, 1.0)
        conditional = [step.predict(x, t) for x, t in zip(inputs, sampler.timesteps, strict=True)]
        r.compare("eps_cond_only_seq", torch.stack(conditional), "predictions")
        # From the recorded predictions where there are any: at the noisiest steps x_0 is the prediction's
        # rounding, 157 times enlarged.
        predictions = list(r["eps_seq"]) if "eps_seq" in r else guided
        cleaned, following = [], []
        for k, (x, prediction, timestep) in enumerate(zip(inputs, predictions, sampler.timesteps, strict=True)):
            level = torch.full((len(x),), timestep)
            cleaned.append(to_clean(prediction, x, level, reference.schedule, "epsilon"))
            following.append(sampler.step(k, x, prediction, noise_seq[k]))
        r.compare("pred_x0_seq", torch.stack(cleaned), "sampling trajectories")
        r.compare("xt_seq", torch.stack(following), "sampling trajectories", "each step by itself")

    states: list[Tensor] = []

    def watch(event: StepEvent) -> None:
        states.append(event.tokens)

    noise = RecordedNoise(z, noise_seq, order)
    tokens = generate_tokens(
        model, schedule, "epsilon", config, context, positions, [len(order)], noise, watch
    )
    r.compare("xt_seq", torch.stack(states), "sampling trajectories", "running freely")
    r.compare("final_tokens", tokens, "sampling trajectories")
    height, width = reference.config.grid_height, reference.config.grid_width
    r.compare("final_nchw", unpatchify(tokens, reference.patch_size, height, width), "sampling trajectories")


def respaced(schedule: NoiseSchedule, spec: str) -> NoiseSchedule:
    """The levels that a respacing of the reference keeps, whatever its form."""
    return schedule.select(respacing_timesteps(schedule.num_timesteps, spec))


def _sampling(schedule: NoiseSchedule, guidance_scale: str) -> SampleConfig:
    """DDPM through every level of a respaced schedule. The reference guides only above 1."""
    return SampleConfig(
        sampler="ddpm",
        diffusion_steps=[schedule.num_timesteps],
        guidance_scale=max(float(guidance_scale), 1.0),
    )
