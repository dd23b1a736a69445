"""Compiled blocks, and lengths that take few values: the same results, few compilations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import DiffusionConfig, FactorizationConfig, ModelConfig, SampleConfig
from causalfusion.diffusion.process import make_process
from causalfusion.documents import NO_TARGET, UNSEEN, Text, lay_out
from causalfusion.factorization import Plan, plan_batch
from causalfusion.generate.context import prefill
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import generate_tokens
from causalfusion.model.compiled import compile_blocks
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, pack_training

CONFIG = ModelConfig(
    hidden_size=32, depth=5, num_heads=2, num_class_tokens=4, num_classes=5, token_dim=6,
    grid_height=8, grid_width=8,
)  # fmt: skip
IMAGES, TOKENS = 3, CONFIG.num_tokens


def model_of(config: ModelConfig) -> Transformer:
    torch._dynamo.reset()
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


@pytest.fixture
def model() -> Transformer:
    return model_of(CONFIG)


def plan_of(index: int, split: str = "per_batch") -> Plan:
    config = FactorizationConfig(split="per_batch" if split == "per_batch" else "per_image")
    places = list(range(IMAGES * index, IMAGES * index + IMAGES))
    return plan_batch(config, 8, 8, seed=0, split_index=index, sample_indices=places)


def sequence_of(plan: Plan, length_multiple: int = 1) -> PackedSequence:
    generator = torch.Generator().manual_seed(1)
    clean, noised = (torch.randn(IMAGES, TOKENS, 6, generator=generator) for _ in range(2))
    labels, timesteps = torch.arange(IMAGES), torch.tensor([[1], [300], [999]])
    return pack_training(labels, 4, clean, noised, plan, timesteps, length_multiple)


def passes(model: Transformer, sequence: PackedSequence, backend="dense") -> tuple[Tensor, Tensor]:
    prediction = model(sequence, backend=backend).image
    grads = torch.autograd.grad(prediction.square().mean(), list(model.parameters()))
    return prediction.detach(), torch.cat([g.flatten() for g in grads])


def error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


@pytest.mark.parametrize("split", ["per_batch", "per_image"])
@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_longer_sequences_give_the_same(model, split, backend):
    for index in range(4):
        plan = plan_of(index, split)
        exact, longer = sequence_of(plan), sequence_of(plan, 32)
        for ours, expected in zip(passes(model, longer, backend), passes(model, exact), strict=True):
            assert error(ours, expected) < 2e-6


def test_few_lengths():
    """Clean tokens: of a split for all images, a multiple or all; of a split for each image, always all."""
    lengths = {sequence_of(plan_of(index), 32).num_tokens for index in range(60)}
    everything = CONFIG.num_condition_tokens + 2 * TOKENS
    assert len(lengths) > 1
    assert lengths <= {96, 128, everything}
    assert len({sequence_of(plan_of(index)).num_tokens for index in range(60)}) > 20
    assert {sequence_of(plan_of(index, "per_image"), 32).num_tokens for index in range(9)} == {everything}


def test_processes_take_equal_lengths():
    """A shared split follows from the train step, not from a process's images."""
    config = FactorizationConfig()
    for index in range(0, 60, 6):
        first, second = (
            plan_batch(config, 8, 8, seed=0, split_index=index, sample_indices=range(start, start + 3))
            for start in (index, index + 3)
        )
        assert not torch.equal(first.order, second.order)
        assert sequence_of(first).num_tokens == sequence_of(second).num_tokens


def test_text_is_filled_up_to_a_length():
    markers = Markers(text=0, text_end=1, image=2, image_end=3, end=4)
    documents = [[Text(tuple(range(14)))], [Text((7,))]]
    plain = lay_out(documents, markers, [])
    assert plain.text_ids.shape[1] == 16 == plain.filled(9).text_ids.shape[1]
    longer = plain.filled(32)
    for name in ("text_ids", "text_ar_step", "text_targets"):
        assert getattr(longer, name).shape == (2, 32)
        assert torch.equal(getattr(longer, name)[:, :16], getattr(plain, name))
    assert (longer.text_ar_step[:, 16:] == UNSEEN).all() and (longer.text_targets[:, 16:] == NO_TARGET).all()


def test_training_compiles_a_handful_of_times(model):
    """Over 12 different splits, hence lengths; the last block reads fewer rows."""
    sequences = [sequence_of(plan_of(index)) for index in range(12)]
    assert len({s.num_tokens for s in sequences}) > 8
    expected = [passes(model, s) for s in sequences]
    counter = CompileCounter()
    compile_blocks(model, counter)
    for sequence, (prediction, gradient) in zip(sequences, expected, strict=True):
        ours = passes(model, sequence)
        assert error(ours[0], prediction) < 1e-6
        assert error(ours[1], gradient) < 1e-5
    assert 1 <= counter.frame_count <= 6


@pytest.mark.parametrize("images", [IMAGES, 1])
def test_generation_compiles_a_handful_of_times(images):
    """Whatever the number of AR steps, down to one token in each, and so the lengths of cache and step; none
    is left uncompiled."""
    model = model_of(replace(CONFIG, depth=2, grid_height=4, grid_width=4)).eval().requires_grad_(False)
    tokens = model.config.num_tokens

    @torch.no_grad()
    def generate(num_ar_steps: int, scale: float) -> Tensor:
        config = SampleConfig(num_ar_steps=num_ar_steps, diffusion_steps=[1], guidance_scale=scale)
        context = prefill(model, torch.arange(images), config)
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)).expand(images, -1)
        return generate_tokens(
            model, make_process(DiffusionConfig()), config, context, order,
            step_sizes(config, tokens, 0), ImageNoise(0, range(images), tokens, 6),
        )  # fmt: skip

    settings = [(1, 2.0), (4, 2.0), (tokens, 2.0), (4, 1.0), (tokens, 1.0)]
    expected = [generate(*s) for s in settings]
    counter = CompileCounter()
    compile_blocks(model, counter)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for setting, found in zip(settings, expected, strict=True):
            assert error(generate(*setting), found) < 1e-5
    assert 1 <= counter.frame_count <= 20
