"""Per-token heads: cached generation against the masked pass, bidirectional contexts recomputed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from causalfusion.config import (
    DiffusionConfig,
    EncoderConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    SampleConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, ar_step_of, masked_cosine_split, places_of
from causalfusion.generate.ar_step import HeadStep, make_step
from causalfusion.generate.context import prefill
from causalfusion.generate.guidance import Guidance
from causalfusion.generate.layout import draw_orders, to_raster
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.tokens import generate_tokens
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import Denoising, pack_asking, pack_bidirectional, pack_next

TOLERANCE = 1e-5
PROCESS = make_process(DiffusionConfig())
RMS = NormConfig(kind="rms_norm", weight="none", eps=1e-6)
HEAD = HeadConfig(kind="per_token", width=24, depth=2)
ASKING = ModelConfig(
    hidden_size=32, depth=2, num_heads=4, num_class_tokens=3, num_classes=5, token_dim=3, grid_height=4,
    grid_width=4, head=HEAD,
)  # fmt: skip
NEXT = replace(
    ASKING, num_class_tokens=1, num_kv_heads=2, mlp="swiglu", norm=RMS, out_norm=RMS,
    qk_norm=QKNormConfig(kind="none"), position_embedding="rope",
    rope=RopeConfig(base=1e4, axes="raster", pairs="interleaved", spacing="closed"),
    head=replace(HEAD, ask="previous", norm=RMS, mlp="swiglu", bias=False, width=0),
)  # fmt: skip
MASKED = replace(
    ASKING, context="bidirectional", position_embedding="learnable", input_norm=True, mlp="gelu",
    encoder=EncoderConfig(depth=2, hidden_size=48), head=replace(HEAD, positions=True),
)  # fmt: skip


def make_model(config: ModelConfig) -> Transformer:
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.requires_grad_(False)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean and noised tokens (2, 16, 3)."""
    clean, noised = torch.randn(2, 2, 16, 3, generator=torch.Generator().manual_seed(seed)).unbind(0)
    return clean, noised


LABELS, TIMESTEP = torch.tensor([1, 4]), 300


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8).filter(lambda s: sum(s) <= 16),
    positions=st.sampled_from(["sincos", "rope"]),
    conditioning=st.sampled_from(["in_context", "adaln_zero"]),
)
def test_cached_conditions_and_predictions_equal_the_masked_pass(sizes, positions, conditioning):
    """CausalFusion's plans with a per-token head: any split and order, KV cache and all."""
    sizes = [*sizes, 16 - sum(sizes)] if sum(sizes) < 16 else sizes
    model = make_model(replace(ASKING, position_embedding=positions, conditioning=conditioning))
    clean, noised = images(len(sizes))
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(k)) for k in range(2)])
    plan = Plan(order, ar_step_of(sizes)[None], 4)
    denoising = Denoising(noised, torch.full((2, 1), TIMESTEP))
    sequence = pack_asking(LABELS, model.config.num_condition_tokens, clean, plan, denoising)
    masked = model(sequence, backend="dense")
    assert masked.condition is not None

    context, start = prefill(model, LABELS, SampleConfig()), 0
    for size in sizes:
        part = slice(start, start + size)
        step = make_step(model, context, order[:, start:], size)
        assert isinstance(step, HeadStep)
        assert error(step.condition, masked.condition[:, part]) <= TOLERANCE
        assert error(step.predict(noised[:, part], TIMESTEP), masked.image[:, part]) <= TOLERANCE
        context, start = step.finish(clean[:, part]), start + size


def test_tokens_one_after_another_equal_the_causal_pass():
    """A head that asks by the token before: its cached conditions are those of one pass."""
    model, (clean, noised) = make_model(NEXT), images()
    order = torch.arange(16).expand(2, -1)
    denoising = Denoising(noised, torch.full((2, 1), TIMESTEP))
    whole = model(pack_next(LABELS, 1, clean, Plan(order, ar_step_of([1] * 16)[None], 4), denoising))
    context = prefill(model, LABELS, SampleConfig())
    for place in range(16):
        step = make_step(model, context, order[:, place:], 1)
        found = step.predict(noised[:, place : place + 1], TIMESTEP)
        assert error(found, whole.image[:, place : place + 1]) <= TOLERANCE, place
        context = step.append(clean[:, place : place + 1])


def by_hand(model: Transformer, label: int, known: dict[int, Tensor], asked: list[int]) -> dict[int, Tensor]:
    """Conditions of asked places of one image, from the parts of the model and plain attention over all."""
    encoder, head = model.encoder, model.config.num_class_tokens
    assert encoder is not None and model.class_embedding is not None and model.norm_in is not None
    assert model.mask_token is not None and model.condition_position is not None

    def see_all(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return scores.softmax(-1) @ v

    places = list(known)
    tokens = [(model.image_in(known[p]) + model.image_position[p])[None] for p in places]
    x = model.norm_in(torch.cat([model.class_embedding(torch.tensor([label]))[0], *tokens]))[None]
    x = encoder(x, see_all)[0]
    image = {p: x[head + i] for i, p in enumerate(places)} | {p: model.mask_token for p in asked}
    raster = sorted(image)
    rows = torch.stack([image[p] + encoder.image_position[p] for p in raster])
    x = torch.cat([x[:head] + encoder.class_position, rows])[None]
    for layer, block in enumerate(model.blocks):
        x = block(x, see_all, layer)
    x = model.norm_out(x)[0, head:]
    return {p: x[raster.index(p)] + model.condition_position[p] for p in asked}


def test_a_bidirectional_context_is_computed_anew_at_every_ar_step():
    model, (clean, _) = make_model(MASKED), images()
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(k)) for k in range(2)])
    context, start = prefill(model, LABELS, SampleConfig()), 0
    for size in masked_cosine_split(16, 4):
        step = make_step(model, context, order[:, start:], size)
        assert isinstance(step, HeadStep)
        for image in range(2):
            before, now = order[image, :start].tolist(), order[image, start : start + size].tolist()
            known = {place: clean[image, i] for i, place in enumerate(before)}
            expected = by_hand(model, int(LABELS[image]), known, order[image, start:].tolist())
            for place, found in zip(now, step.condition[image], strict=True):
                assert error(found, expected[place]) <= TOLERANCE
        context, start = step.append(clean[:, start : start + size]), start + size


@pytest.mark.parametrize("config", [ASKING, NEXT, MASKED], ids=["asking", "next", "masked"])
def test_guidance_acts_on_the_head(config):
    """What both halves give the head differs by the class alone; the guided prediction is their mixture."""
    model, (_, noised) = make_model(config), images()
    order, size = torch.arange(16).expand(2, -1), 1
    plain, null = SampleConfig(), torch.full_like(LABELS, 5)

    def predicted(labels: Tensor, settings: SampleConfig, guidance: Guidance) -> Tensor:
        step = make_step(model, prefill(model, labels, settings), order, size, guidance)
        return step.predict(noised[:, :1], TIMESTEP)

    conditional, unconditional = (predicted(labels, plain, Guidance()) for labels in (LABELS, null))
    found = predicted(LABELS, SampleConfig(guidance_scale=3.0), Guidance(3.0))
    assert error(found, unconditional + 3 * (conditional - unconditional)) <= TOLERANCE
    assert error(conditional, unconditional) > 1e-3


@pytest.mark.parametrize("config", [ASKING, NEXT, MASKED], ids=["asking", "next", "masked"])
def test_an_image_does_not_depend_on_its_batch(config):
    model = make_model(config)
    order_of = {"order": "raster", "num_ar_steps": 16} if config is NEXT else {"num_ar_steps": 3}
    sampling = SampleConfig(diffusion_steps=[3], guidance_scale=2.0, **order_of)

    def generated(labels: list[int], indices: list[int]) -> Tensor:
        order = draw_orders(sampling, 4, 4, 0, indices)
        sizes = [1] * 16 if config is NEXT else [4, 5, 7]
        noise, context = ImageNoise(0, indices, 16, 3), prefill(model, torch.tensor(labels), sampling)
        return to_raster(generate_tokens(model, PROCESS, sampling, context, order, sizes, noise), order)

    together = generated([1, 4, 2], [0, 1, 2])
    assert error(generated([4], [1]), together[1:2]) <= 1e-4


def test_the_transformer_runs_once_per_ar_step(monkeypatch):
    """Only the head runs in every diffusion step."""
    model, calls = make_model(ASKING), []
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    sampling = SampleConfig(diffusion_steps=[10])
    context = prefill(model, LABELS, sampling)
    order = draw_orders(sampling, 4, 4, 0, [0, 1])
    generate_tokens(model, PROCESS, sampling, context, order, [4, 4, 8], ImageNoise(0, [0, 1], 16, 3))
    assert len(calls) == 1 + 3, "the prefill, and one pass for each AR step, with what the last one finished"


def test_a_head_that_asks_by_the_token_before_refuses_other_orders():
    model, sampling = make_model(NEXT), SampleConfig(num_ar_steps=4)
    context, order = prefill(model, LABELS, sampling), torch.arange(16).expand(2, -1)
    with pytest.raises(UserError, match=r"sample\.num_ar_steps 16 instead of random and 4"):
        generate_tokens(model, PROCESS, sampling, context, order, [4] * 4, ImageNoise(0, [0, 1], 16, 3))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"context": "bidirectional"}, "causal, unless a per_token head asks by mask tokens"),
        (
            {"head": replace(HEAD, ask="previous"), "num_class_tokens": 0},
            "mask, for a model without class tokens",
        ),
        ({"encoder": EncoderConfig(depth=1), "head": HEAD}, "0, unless model.context is bidirectional"),
        ({"num_kv_heads": 3}, "a divisor of num_heads 4"),
        ({"adaln_rank": 4}, "0, unless model.conditioning is adaln_zero"),
        ({"rope": RopeConfig(base=1e4)}, "rope, where model.rope is set"),
        ({"head": replace(HEAD, ask="previous"), "vocab_size": 9}, "mask, for a model with text"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes, what):
    with pytest.raises(UserError, match=what):
        replace(ASKING, **{"head": HeadConfig(), **changes})


def test_masked_cosine_sizes():
    """MAR's: floor(L cos), clamped to at least one and fewer than before (values worked out by hand)."""
    assert masked_cosine_split(36, 4) == [3, 8, 12, 13]
    assert masked_cosine_split(16, 1) == [16]
    for steps in (2, 7, 16):
        sizes = masked_cosine_split(16, steps)
        assert sum(sizes) == 16 and len(sizes) == steps and min(sizes) >= 1


def test_places_are_what_tells_mask_tokens_apart():
    model = make_model(ASKING)
    context = prefill(model, LABELS, SampleConfig())
    step = make_step(model, context, torch.tensor([[3, 9], [3, 9]]), 2)
    swapped = make_step(model, context, torch.tensor([[9, 3], [9, 3]]), 2)
    assert isinstance(step, HeadStep) and isinstance(swapped, HeadStep)
    assert error(step.condition, swapped.condition.flip(1)) <= TOLERANCE
    assert error(step.condition[:, 0], step.condition[:, 1]) > 1e-2
    assert places_of(torch.tensor([9]), 4).tolist() == [[2, 1]]


@pytest.mark.parametrize("config", [ASKING, MASKED], ids=["asking", "masked"])
def test_kept_tokens_are_context_of_an_edit(config):
    """What is to be drawn depends on the tokens that are kept, and on nothing else of the image."""
    model, (clean, other) = make_model(config), images()
    order = torch.arange(16).expand(2, -1)
    kept, changed = order[:, :10], order[:, 10:]

    def condition(tokens: Tensor) -> Tensor:
        context = prefill(model, LABELS, SampleConfig(), kept_tokens=tokens[:, :10], kept_positions=kept)
        step = make_step(model, context, changed, 6)
        assert isinstance(step, HeadStep)
        return step.condition

    mixed = torch.cat([clean[:, :10], other[:, 10:]], dim=1)
    assert torch.equal(condition(clean), condition(mixed))
    assert error(condition(other), condition(clean)) > 1e-3


def test_an_encoder_computes_by_flex_attention_as_it_does_densely():
    """A GPU's way to attend: no head reads the known tokens that an encoder takes alone."""
    clean, _ = images()
    places = places_of(torch.arange(16)[None], 4)
    sequence = pack_bidirectional(LABELS, 3, clean[:, :6], places[:, :6], places[:, 6:])
    model = make_model(MASKED)
    with torch.no_grad():
        flex, dense = (model(sequence, backend=name).condition for name in ("flex", "dense"))
    assert flex is not None and dense is not None and error(flex, dense) < TOLERANCE
