"""Replaying recorded generation: cached against masked predictions, guidance, and sampling trajectories.

Shape letters: B images, L image tokens, n tokens of an AR step, P token dimension, K diffusion steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.codec.patches import unpatchify
from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.generate.ar_step import AutoregressiveStep, make_step
from causalfusion.generate.context import Context, prefill
from causalfusion.generate.guidance import Guidance
from causalfusion.generate.tokens import StepEvent, generate_tokens
from causalfusion.interop.recording import Recording
from causalfusion.interop.reference_model import Reference
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
    """Replay X.infer: a masked pass, the same with the cache, and a complete autoregressive sampling."""
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
        _Image(batch.labels[n], clean[n], noised[n], plan.order[n], int(timesteps[n])).predictions(
            model, plan.ar_step[0]
        )
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


class _Image:
    """One image of X.infer, replayed alone because a generation step has a single timestep."""

    def __init__(self, label: Tensor, clean: Tensor, noised: Tensor, order: Tensor, timestep: int) -> None:
        self.label, self.clean, self.noised, self.order = label[None], clean[None], noised[None], order[None]
        self.timestep = timestep

    def predictions(self, model: Transformer, ar_step: Tensor) -> dict[str, Tensor]:
        """The recorded predictions and caches, with a cache that grows by the AR steps (L,) of the tokens."""
        num_ar_steps = int(ar_step[-1])
        last = ar_step == num_ar_steps
        plain = SampleConfig()
        guided = SampleConfig(guidance_scale=2.0)
        context = prefill(model, self.label, plain)
        doubled = prefill(model, self.label, guided)
        oneshot = prefill(model, self.label, plain)
        predictions = []
        for number in range(1, num_ar_steps + 1):
            chosen = ar_step == number
            predictions.append(self._predict(model, context, plain, chosen, number))
            if number < num_ar_steps:
                self._append(model, context, plain, chosen, number)
                self._append(model, doubled, guided, chosen, number)
        if num_ar_steps > 1:
            self._append(model, oneshot, plain, ~last, 1)
        cache = context.cache
        return {
            "eps_cached": torch.cat(predictions, dim=1),
            "eps_last_group_cfg2": self._predict(model, doubled, guided, last, num_ar_steps),
            "eps_last_group_oneshot_context": self._predict(model, oneshot, plain, last, 2),
            "kv_full/k": cache.k[:, :, :, : cache.length],
            "kv_full/v": cache.v[:, :, :, : cache.length],
        }

    def _predict(
        self, model: Transformer, context: Context, config: SampleConfig, chosen: Tensor, number: int
    ) -> Tensor:
        step = self._step(model, context, config, chosen, number)
        return step.predict(self.noised[:, chosen], self.timestep)

    def _append(
        self, model: Transformer, context: Context, config: SampleConfig, chosen: Tensor, number: int
    ) -> None:
        self._step(model, context, config, chosen, number).append(self.clean[:, chosen])

    def _step(
        self, model: Transformer, context: Context, config: SampleConfig, chosen: Tensor, number: int
    ) -> AutoregressiveStep:
        context, positions = replace(context, next_ar_step=number), self.order[:, chosen]
        return make_step(model, context, positions, positions.shape[1], Guidance(config.guidance_scale))


def _replay_ar_sampling(r: Recording, reference: Reference, model: Transformer, labels: Tensor) -> None:
    order, sizes = r["ar/order"], r["ar/split_sizes"].tolist()
    if sum(sizes) != len(order) or not torch.equal(order.sort().values, torch.arange(len(order))):
        raise UserError(f"{r.path}: ar/order and ar/split_sizes are not those of {len(order)} tokens")
    config = _sampling(r.setting("respace_ar"), r.setting("cfg_ar"))
    tokens = generate_tokens(
        model,
        reference.process,
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
    """Replay X.sample, diffusion in one AR step: step by step from recorded inputs, and as a free run."""
    r, model = recording, reference.model()
    labels, z, noise_seq = r["y"], r["z"], r["noise_seq"]
    if "null_class" in r.metadata:
        ours = torch.tensor(reference.config.null_label)
        r.check("null_class", ours, torch.tensor(int(r.metadata["null_class"])), "labels")
    config, process = _sampling(r.setting("respace"), r.setting("cfg_scale")), reference.process
    context = prefill(model, labels, config)
    r.compare("y_doubled", context.labels, "labels")
    assert model.class_embedding is not None, "the reference has class tokens"
    r.compare("cond_tokens", model.class_embedding(context.labels), "predictions")
    for name, part in (("k", context.cache.k), ("v", context.cache.v)):
        r.compare(f"kv_cond/{name}", part[:, :, :, : context.cache.length], "caches")

    order = torch.arange(z.shape[1])
    positions = order[None].expand(len(z), -1)
    sampler = process.sampler(config, *process.num_steps(config))
    r.compare("t_model", torch.tensor(sampler.timesteps), "timesteps")
    if "xt_seq" in r:
        inputs = [z, *r["xt_seq"][:-1]]
        step = make_step(model, context, positions, len(order), Guidance(config.guidance_scale))
        guided = [step.predict(x, t) for x, t in zip(inputs, sampler.timesteps, strict=True)]
        r.compare("eps_seq", torch.stack(guided), "predictions")
        plain = SampleConfig()
        step = make_step(model, prefill(model, labels, plain), positions, len(order))
        conditional = [step.predict(x, t) for x, t in zip(inputs, sampler.timesteps, strict=True)]
        r.compare("eps_cond_only_seq", torch.stack(conditional), "predictions")
        # From recorded predictions, if there are any: at the noisiest steps x_0 magnifies the rounding of a
        # prediction 157 times.
        predictions = list(r["eps_seq"]) if "eps_seq" in r else guided
        cleaned, following = [], []
        for k, (x, prediction, timestep) in enumerate(
            zip(inputs, predictions, sampler.timesteps, strict=True)
        ):
            level = torch.full((len(x),), timestep)
            cleaned.append(process.to_clean(prediction, x, level))
            following.append(sampler.step(k, x, prediction, noise_seq[k]))
        r.compare("pred_x0_seq", torch.stack(cleaned), "sampling trajectories")
        r.compare("xt_seq", torch.stack(following), "sampling trajectories", "each step by itself")

    states: list[Tensor] = []

    def watch(event: StepEvent) -> None:
        states.append(event.tokens)

    noise = RecordedNoise(z, noise_seq, order)
    tokens = generate_tokens(model, process, config, context, positions, [len(order)], noise, watch)
    r.compare("xt_seq", torch.stack(states), "sampling trajectories", "running freely")
    r.compare("final_tokens", tokens, "sampling trajectories")
    height, width = reference.config.grid_height, reference.config.grid_width
    r.compare("final_nchw", unpatchify(tokens, height, width, reference.patch_size), "sampling trajectories")


def _sampling(respacing: str, guidance_scale: str) -> SampleConfig:
    """Settings of DDPM sampling with the timesteps of a respacing; "" keeps all. The reference guides only
    with scales above 1."""
    return SampleConfig(
        sampler="ddpm",
        respacing=respacing,
        diffusion_steps=[1000],
        guidance_scale=max(float(guidance_scale), 1.0),
    )
