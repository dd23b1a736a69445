"""The mask against a brute-force oracle written from the paper's words, in both its forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.config import FactorizationConfig, ModelConfig
from causalfusion.factorization import Plan, ar_step_of, plan_batch
from causalfusion.mask import block_mask, dense_mask
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import pack_training

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def sequence_of(sizes, copies=1, num_class_tokens=3, batch_size=2):
    total = sum(sizes)
    plan = Plan(torch.arange(total).expand(batch_size, -1), ar_step_of(sizes)[None], total)
    tokens = torch.zeros(batch_size, total, 1)
    timesteps = torch.zeros(batch_size, 1, dtype=torch.int64)
    noised = tokens.repeat(1, copies, 1)
    return pack_training(
        torch.zeros(batch_size, dtype=torch.int64), num_class_tokens, tokens, noised, plan, timesteps
    )


def oracle(sizes, num_class_tokens):
    """The paper, word by word: condition tokens see each other and everything sees them; clean tokens
    of step s see clean tokens of steps <= s; noisy ones see clean tokens of steps < s and their own step."""
    step = [s for s, size in enumerate(sizes) for _ in range(size)]
    context = len(step) - sizes[-1]
    rows = [("condition", 0)] * num_class_tokens
    rows += [("clean", s) for s in step[:context]] + [("noisy", s) for s in step]
    mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for q, (q_kind, q_step) in enumerate(rows):
        for k, (k_kind, k_step) in enumerate(rows):
            if k_kind == "condition":
                mask[q, k] = True
            elif q_kind == "clean":
                mask[q, k] = k_kind == "clean" and k_step <= q_step
            elif q_kind == "noisy":
                mask[q, k] = k_step < q_step if k_kind == "clean" else k_step == q_step
    return mask


@given(SIZES, st.integers(0, 4))
def test_dense_mask_equals_the_oracle(sizes, num_class_tokens):
    sequence = sequence_of(sizes, num_class_tokens=num_class_tokens)
    assert dense_mask(sequence.clean, sequence.ar_step)[0, 0].equal(oracle(sizes, num_class_tokens))


@settings(max_examples=15)
@given(st.lists(SIZES, min_size=1, max_size=3))
def test_block_mask_equals_the_dense_one(splits):
    """For a shared plan and for one per image, and for the last queries alone."""
    total = max(map(sum, splits))
    splits = [[*s, total - sum(s)] if sum(s) < total else s for s in splits]
    ar_step = torch.stack([ar_step_of(s) for s in splits])
    plan = Plan(torch.arange(total).expand(len(splits), -1), ar_step, total)
    tokens = torch.zeros(len(splits), total, 1)
    labels = torch.zeros(len(splits), dtype=torch.int64)
    sequence = pack_training(labels, 2, tokens, tokens, plan, labels[:, None])
    dense = dense_mask(sequence.clean, sequence.ar_step)
    for first in (0, sequence.first_output):
        block = block_mask(sequence.clean, sequence.ar_step, first_query=first)
        num_queries = sequence.num_tokens - first
        index = torch.arange(num_queries)[:, None], torch.arange(sequence.num_tokens)[None]
        for b in range(len(splits)):
            image = torch.tensor(b)
            evaluated = block.mask_mod(image, torch.tensor(0), *index)
            assert evaluated.equal(dense[b if len(dense) > 1 else 0, 0, first:])
        # Every pair that may attend lies in a block that is computed.
        computed = block.to_dense().bool().repeat_interleave(128, -2).repeat_interleave(128, -1)
        seen = dense[:, :, first:]
        assert bool((computed[:, :, :num_queries, : sequence.num_tokens] | ~seen).all())


def test_one_step_is_full_attention():
    sequence = sequence_of([7])
    assert dense_mask(sequence.clean, sequence.ar_step)[0, 0, 3:].all()
    assert sequence.num_tokens == 3 + 7


@given(SIZES, st.integers(2, 4))
def test_noised_copies_do_not_see_each_other(sizes, copies):
    """Copy r of step s sees what a lone noised step s would: its context and itself."""
    single, several = sequence_of(sizes), sequence_of(sizes, copies=copies)
    total, first = sum(sizes), single.first_output
    lone = dense_mask(single.clean, single.ar_step)[0, 0]
    mask = dense_mask(several.clean, several.ar_step)[0, 0]
    for r in range(copies):
        rows = slice(first + r * total, first + (r + 1) * total)
        assert mask[rows, :first].equal(lone[first:, :first])
        assert mask[rows, rows].equal(lone[first:, first:])
        outside = mask[rows].clone()
        outside[:, :first] = False
        outside[:, rows] = False
        assert not outside.any()


@pytest.mark.parametrize("split", ["per_batch", "per_image"])
@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_gradients_at_forbidden_positions_are_exactly_zero(split, backend):
    config = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=2, num_classes=3, token_dim=4,
                         grid_height=4, grid_width=4)  # fmt: skip
    model = Transformer(config)
    torch.nn.init.normal_(model.image_out.weight)
    factorization = FactorizationConfig(distribution="fixed", num_ar_steps=4, split=split)
    plan = plan_batch(factorization, 4, 4, seed=5, split_index=0, sample_indices=[0, 1])
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 16, 4, generator=generator, requires_grad=True)
    noised = torch.randn(2, 16, 4, generator=generator, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.int64)
    predictions = model(
        pack_training(labels, 2, clean, noised, plan, torch.full((2, 1), 500)), backend=backend
    ).image
    for image in range(2):
        ar_step = plan.ar_step[image if split == "per_image" else 0]
        for step in range(1, 5):
            (own,) = (ar_step == step).nonzero(as_tuple=True)
            for tensor, allowed in ((clean, ar_step < step), (noised, ar_step == step)):
                (grad,) = torch.autograd.grad(predictions[image, own].sum(), tensor, retain_graph=True)
                reached = grad[image].abs().sum(-1) > 0
                assert reached.equal(allowed)
                assert not grad[1 - image].any()
