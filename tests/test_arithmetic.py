"""Counted arithmetic against what the model executes and against the mask; expectations against draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import (
    EncoderConfig,
    FactorizationConfig,
    HeadConfig,
    ImageWeightsConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.documents import Image, Text, lay_out, pack_documents
from causalfusion.factorization import Plan, ar_step_of, draw_split
from causalfusion.generate.context import prefill
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.tokens import generate_tokens
from causalfusion.mask import dense_mask
from causalfusion.model import cpu_feed_forward
from causalfusion.model.arithmetic import (
    Form,
    expected_train_flops,
    form_of,
    image_flops,
    train_step_flops,
)
from causalfusion.model.generation_arithmetic import generation_flops
from causalfusion.model.split_facts import expected_facts, split_facts
from causalfusion.model.transformer import Transformer
from causalfusion.rng import derive_generator
from causalfusion.sequence import PackedSequence, pack_training
from causalfusion.train.step import Arranged, Objective

MODEL = ModelConfig(
    hidden_size=32, depth=3, num_heads=2, num_class_tokens=3, num_classes=5, token_dim=6, grid_height=4,
    grid_width=4,
)  # fmt: skip
SIZES = [5, 1, 7, 3]


def _sequence(sizes: list[int], config: ModelConfig, copies: int = 1, levels: int = 1) -> PackedSequence:
    total = sum(sizes)
    plan = Plan(torch.arange(total)[None], ar_step_of(sizes)[None], config.grid_width)
    clean = torch.zeros(1, total, config.token_dim)
    timesteps = torch.zeros(1, levels, dtype=torch.int64)
    labels = torch.zeros(1, dtype=torch.int64)
    noised = clean.repeat(1, copies, 1)
    return pack_training(labels, config.num_condition_tokens, clean, noised, plan, timesteps)


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """With gradients on, and attention as plain products: fused kernels are not counted."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


class _AllRows(PackedSequence):
    """As the released code computes: the last layer too has all rows."""

    @property
    def first_output(self) -> int:
        return 0


@pytest.mark.parametrize("conditioning", ["in_context", "adaln_zero"])
@pytest.mark.parametrize(("copies", "levels"), [(1, 1), (1, 16), (2, 32)])
def test_dense_is_what_a_dense_pass_executes(conditioning: Any, copies: int, levels: int):
    config = replace(MODEL, conditioning=conditioning)
    sequence = _AllRows(_sequence(SIZES, config, copies, levels).segments)
    with _counting() as counter:
        Transformer(config).requires_grad_(False)(sequence, backend="dense")
    expected = image_flops(config, split_facts(SIZES), Form(copies=copies, timestep_rows=levels)).dense
    assert counter.get_total_flops() == expected


def test_dense_counts_two_streams_of_different_widths():
    weights = ImageWeightsConfig(kind="own", hidden_size=16, mlp_hidden=24)
    config = replace(MODEL, head_size=16, image_weights=weights)
    sequence = _AllRows(_sequence(SIZES, config).segments)
    with _counting() as counter:
        Transformer(config).requires_grad_(False)(sequence, backend="dense")
    assert counter.get_total_flops() == image_flops(config, split_facts(SIZES), Form()).dense


def test_a_frozen_text_costs_its_forward_pass_alone():
    """Against an unfrozen one: the backward pass of its linear layers, and all that reads it, are spared."""
    weights = ImageWeightsConfig(kind="own", hidden_size=16)
    model = replace(MODEL, vocab_size=11, num_class_tokens=0, image_weights=weights)
    text, train = TextConfig(tokenizer="x", loss_coefficient=0.0), TrainConfig(trainable="images", init="x")
    frozen = RunConfig(model=model, text=text, train=train)
    whole = replace(frozen, train=TrainConfig())
    difference = expected_train_flops(whole, 4, 10).needed - expected_train_flops(frozen, 4, 10).needed
    blocks = 2 * 10 * 12 * 32**2
    last = 2 * 10 * 10 * 32**2  # of the last block, but keys and values, where text is read
    pairs = 4 * (10 * 11 / 2) * 32  # that the text sees in the last block
    assert difference == pytest.approx(2 * 3 * blocks + 3 * (last + pairs) + 3 * 2 * 10 * 32 * 11)


def _needed(config: ModelConfig, sequence: PackedSequence, outputs: torch.Tensor) -> float:
    """Brute force: the mask's pairs, and in the last layer only the rows `outputs`."""
    size, mask = config.hidden_size, dense_mask(sequence.clean, sequence.ar_step)[0, 0]
    rows, pairs = sequence.num_tokens, int(mask.sum())
    whole = 2 * rows * 12 * size**2 + 4 * pairs * size
    read = int(outputs.sum())
    last = 2 * rows * 2 * size**2 + 2 * read * 10 * size**2 + 4 * int(mask[outputs].sum()) * size
    return (config.depth - 1) * whole + last


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 3))
def test_needed_counts_the_pairs_of_the_mask(sizes: list[int], copies: int):
    sequence = _sequence(sizes, MODEL, copies)
    total, size = sum(sizes), MODEL.hidden_size
    images = sum(s.num_tokens for s in sequence.segments if s.kind == "image")
    ends = 2 * images * 6 * size + 2 * copies * total * 6 * size + 2 * (256 * size + size**2)
    expected = _needed(MODEL, sequence, ~sequence.clean) + ends
    counted = image_flops(MODEL, split_facts(sizes), Form(copies=copies)).needed
    assert counted == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_needed_counts_the_pairs_of_a_prompt_and_its_image(context: Any):
    config = replace(MODEL, vocab_size=11)
    sizes = SIZES if context == "clean" else [16]
    plan = Plan(torch.arange(16)[None], ar_step_of(sizes)[None], config.grid_width)
    layout = lay_out([[Text((4, 5, 6)), Image(0)]], Markers(0, 1, 2, 3, 4), [len(sizes)])
    tokens = torch.zeros(1, 16, 6)
    labels, timesteps = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    sequence = pack_documents(layout, labels, 3, tokens, tokens, plan, timesteps, context)
    text = layout.text_ids.shape[1]
    outputs = torch.cat([torch.full((s.num_tokens,), s.predicts) for s in sequence.segments])
    form = Form(text_tokens=text, clean_copies=context == "clean")
    counted = image_flops(config, split_facts(sizes), form).needed
    size = config.hidden_size
    images = sum(s.num_tokens for s in sequence.segments if s.kind == "image")
    ends = 2 * images * 6 * size + 2 * 16 * 6 * size + 2 * text * 11 * size + 2 * (256 * size + size**2)
    # One marker follows the image and sees all of it, which the count leaves out.
    assert counted == pytest.approx(_needed(config, sequence, outputs) + ends, rel=0.005)


@pytest.mark.parametrize(
    "plan",
    [
        FactorizationConfig(decay=0.8),
        FactorizationConfig(distribution="uniform"),
        FactorizationConfig(distribution="fixed", num_ar_steps=3),
        FactorizationConfig(decay=0.8, split="per_image"),
        FactorizationConfig(distribution="mask_ratio", mask_ratio_min=0.4),
    ],
)
def test_expectation_is_the_mean_over_draws(plan: FactorizationConfig):
    tokens, batch, draws = 12, 4, 1200
    generator = derive_generator(0, plan.distribution)
    splits = [draw_split(tokens, plan, generator) for _ in range(draws)]
    own = [split_facts(sizes) for sizes in splits]
    found = expected_facts(tokens, plan, batch)
    if plan.split == "per_image":
        contexts = [max(f.context for f in own[i : i + batch]) for i in range(0, draws, batch)]
    else:
        contexts = [f.context for f in own]
    of_draws = {
        "last": [f.last for f in own],
        "squares": [f.squares for f in own],
        "context": contexts,
        "context_squared": [c * c for c in contexts],
    }
    for name, values in of_draws.items():
        series = torch.tensor(values, dtype=torch.float64)
        error = float(series.std()) / len(series) ** 0.5
        assert abs(getattr(found, name) - float(series.mean())) <= 4 * error + 1e-9, name


def test_expected_arithmetic_is_the_mean_over_draws():
    config = RunConfig(model=MODEL, factorization=FactorizationConfig(decay=0.7, timesteps_per_ar_step=2))
    form, generator = form_of(config), derive_generator(1)
    splits = [draw_split(16, config.factorization, generator) for _ in range(1000)]
    sums = [image_flops(MODEL, split_facts(sizes), form) * 3 for sizes in splits]
    expected = expected_train_flops(config, 8)
    assert sum(f.dense for f in sums) / 1000 == pytest.approx(expected.dense, rel=0.02)
    assert sum(f.needed for f in sums) / 1000 == pytest.approx(expected.needed, rel=0.02)


def test_a_thousand_tokens_have_no_overflow():
    facts = expected_facts(1024, FactorizationConfig(split="per_image"), 32)
    assert 1023 >= facts.context >= 1024 - facts.last > 0
    assert facts.context_squared >= facts.context**2


def test_form_follows_the_settings():
    run = RunConfig(model=MODEL, factorization=FactorizationConfig(timesteps="per_ar_step"))
    assert form_of(run).timestep_rows == 16
    one_block = FactorizationConfig(distribution="fixed")
    transfusion = RunConfig(model=MODEL, factorization=one_block, text=TextConfig(image_context="noised"))
    assert not form_of(transfusion, 7).clean_copies


HEAD = HeadConfig(kind="per_token", width=20, depth=2)
PER_TOKEN = [
    replace(MODEL, head=HEAD),
    replace(MODEL, head=replace(HEAD, mlp="swiglu"), conditioning="adaln_zero", adaln_rank=5, num_kv_heads=1),
    replace(MODEL, head=replace(HEAD, ask="previous"), mlp="swiglu"),
    replace(MODEL, head=HEAD, context="bidirectional"),
    replace(MODEL, head=HEAD, context="bidirectional", encoder=EncoderConfig(depth=2, hidden_size=48)),
]


@pytest.mark.parametrize("model", PER_TOKEN)
def test_per_token_heads_count_what_a_pass_executes(model: ModelConfig, monkeypatch: pytest.MonkeyPatch):
    """Three copies of each token, each at its own level."""
    _plain_layers(monkeypatch)
    sizes = [1] * 16 if model.head.ask == "previous" else [5, 1, 7, 3]
    factorization = FactorizationConfig(
        timesteps="per_token", timesteps_per_ar_step=3, order="raster", distribution="fixed", num_ar_steps=16
    )
    config = RunConfig(model=model, factorization=factorization)
    objective = Objective(config, make_process(config.diffusion))
    plan = Plan(torch.arange(16)[None], ar_step_of(sizes)[None], model.grid_width)
    tokens = torch.zeros(1, 16, 6)
    levels, noise = torch.zeros(1, 48, dtype=torch.int64), torch.zeros(1, 3, 16, 6)
    piece = Arranged(tokens, torch.zeros(1, dtype=torch.int64), plan, levels, noise)
    sequence = objective.pack(piece, piece.noised_from(objective.first_asked(piece), objective.process))
    with _counting() as counter:
        Transformer(model).requires_grad_(False)(
            _AllRows(sequence.segments, sequence.denoising), backend="dense"
        )
    expected = image_flops(model, split_facts(sizes), form_of(config))
    assert counter.get_total_flops() == expected.dense
    assert expected.needed < expected.dense


@pytest.mark.parametrize("model", PER_TOKEN)
@pytest.mark.parametrize("guided", [False, True])
def test_per_token_generation_counts_what_the_model_executes(
    model: ModelConfig, guided: bool, monkeypatch: pytest.MonkeyPatch
):
    _plain_layers(monkeypatch)
    sizes = [1] * 16 if model.head.ask == "previous" else [10, 6]
    config = SampleConfig(
        num_ar_steps=len(sizes), diffusion_steps=[3], guidance_scale=2.0 if guided else 1.0, sampler="ddim",
        order="raster",
    )  # fmt: skip
    with _counting() as counter:
        transformer = Transformer(model).requires_grad_(False)
        context = prefill(transformer, torch.zeros(1, dtype=torch.int64), config)
        generate_tokens(
            transformer, make_process(RunConfig().diffusion), config, context, torch.arange(16)[None],
            sizes, ImageNoise(0, [0], 16, 6),
        )  # fmt: skip
    counted = generation_flops(model, sizes, [3] * len(sizes), guided)
    assert counter.get_total_flops() == pytest.approx(counted.needed, rel=2e-3)


def _plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused layers are not counted."""
    monkeypatch.setattr(cpu_feed_forward, "_linear_gelu", lambda x, w, b: F.gelu(F.linear(x, w, b)))


@pytest.mark.parametrize("guided", [False, True])
def test_generation_counts_what_the_model_executes(guided: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_feed_forward, "_linear_gelu", lambda x, w, b: F.gelu(F.linear(x, w, b)))
    model = Transformer(MODEL).requires_grad_(False)
    config = SampleConfig(
        num_ar_steps=2, diffusion_steps=[3], guidance_scale=2.0 if guided else 1.0, sampler="ddim"
    )
    order = torch.arange(16)[None]
    with _counting() as counter:
        context = prefill(model, torch.zeros(1, dtype=torch.int64), config)
        generate_tokens(
            model, make_process(RunConfig().diffusion), config, context, order,
            [10, 6], ImageNoise(0, [0], 16, 6),
        )  # fmt: skip
    counted = generation_flops(MODEL, [10, 6], [3, 3], guided)
    assert counter.get_total_flops() == counted.needed < counted.dense


def test_steps_without_guidance_cost_half():
    all_guided, some, none = (
        generation_flops(MODEL, [16], [8], True, guided_steps=[k]).needed for k in (8, 4, 0)
    )
    assert all_guided - some == pytest.approx(some - none)
    assert all_guided == generation_flops(MODEL, [16], [8], True).needed


def test_a_batch_is_forward_and_backward_of_each_image():
    one = train_step_flops(MODEL, SIZES, 1)
    assert train_step_flops(MODEL, SIZES, 4).dense == pytest.approx(4 * one.dense)
    assert one.needed == pytest.approx(3 * image_flops(MODEL, split_facts(SIZES), Form()).needed)
