"""Plans: closed forms for their probabilities, invariants for everything drawn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causalfusion.config import FactorizationConfig
from causalfusion.errors import UserError
from causalfusion.factorization import (
    Plan,
    ar_step_of,
    cosine_split,
    draw_order,
    draw_split,
    even_split,
    loss_weights,
    num_ar_steps_probabilities,
    plan_batch,
    random_composition,
)
from causalfusion.rng import derive_generator


def sizes_strategy():
    return st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(st.integers(1, 300), st.data())
def test_splits_are_compositions(num_tokens, data):
    parts = data.draw(st.integers(1, num_tokens))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    for split in (
        random_composition(num_tokens, parts, generator),
        even_split(num_tokens, parts),
        cosine_split(num_tokens, parts),
    ):
        assert len(split) == parts and sum(split) == num_tokens and min(split) >= 1


def test_composition_is_uniform():
    """All 10 compositions of 6 into 3 parts come up equally often (chi-squared, p > 1e-4)."""
    generator, counts, draws = torch.Generator().manual_seed(0), {}, 5000
    for _ in range(draws):
        key = tuple(random_composition(6, 3, generator))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == math.comb(5, 2)
    chi_squared = sum((c - draws / 10) ** 2 / (draws / 10) for c in counts.values())
    assert chi_squared < 33.7


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.5])
def test_number_of_steps_decays(decay):
    p = num_ar_steps_probabilities(256, FactorizationConfig(decay=decay))
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.allclose(p[1:] / p[:-1], torch.full((255,), decay, dtype=torch.float64))


def test_drawn_number_of_steps_has_the_stated_mean():
    config, generator = FactorizationConfig(decay=0.9), torch.Generator().manual_seed(1)
    p = num_ar_steps_probabilities(64, config)
    values = torch.arange(1, 65).double()
    mean, variance = (p * values).sum(), (p * values**2).sum() - (p * values).sum() ** 2
    drawn = torch.tensor([len(draw_split(64, config, generator)) for _ in range(4000)]).double()
    assert abs(drawn.mean() - mean) < 5 * (variance / 4000).sqrt()


def test_fixed_number_of_steps():
    config = FactorizationConfig(distribution="fixed", num_ar_steps=4)
    assert all(len(draw_split(16, config, derive_generator(0, n))) == 4 for n in range(50))
    with pytest.raises(UserError, match="num_ar_steps is 4; expected at most the 3 tokens"):
        draw_split(3, config, derive_generator(0))


@pytest.mark.parametrize("name", ["random", "raster", "block_raster", "dilated"])
@given(height=st.integers(1, 9), width=st.integers(1, 9), block=st.integers(1, 5))
def test_orders_are_permutations(name, height, width, block):
    order = draw_order(name, height, width, block, torch.Generator().manual_seed(0))
    assert order.sort().values.equal(torch.arange(height * width))


def test_given_order():
    generator = torch.Generator()
    assert draw_order("random", 2, 2, 1, generator, [3, 1, 0, 2]).tolist() == [3, 1, 0, 2]
    with pytest.raises(UserError, match=r"given_order has 4 numbers; expected each of 0\.\.3 once"):
        draw_order("random", 2, 2, 1, generator, [3, 1, 0, 0])
    config = FactorizationConfig(given_order=[3, 1, 0, 2])
    plan = plan_batch(config, 2, 2, seed=0, split_index=0, sample_indices=[5, 6])
    assert plan.order.tolist() == [[3, 1, 0, 2]] * 2


def test_block_raster_and_dilated_by_hand():
    generator = torch.Generator()
    assert draw_order("block_raster", 4, 4, 2, generator).tolist() == [
        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
    ]  # fmt: skip
    assert draw_order("dilated", 4, 4, 2, generator).tolist() == [
        0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15,
    ]  # fmt: skip


@given(sizes_strategy())
def test_loss_weights_by_the_formula(sizes):
    """w = λ - (λ-1) start/L with start the token at which the AR step begins; cosine likewise."""
    total, start, linear, cosine = sum(sizes), 0, [], []
    for size in sizes:
        linear += [3 - 2.5 * start / total] * size
        cosine += [0.5 + 2.5 * (1 + math.cos(math.pi * start / total)) / 2] * size
        start += size
    ar_step = ar_step_of(sizes)[None]
    for name, expected in (("linear", linear), ("cosine", cosine), ("none", [1.0] * total)):
        config = FactorizationConfig(loss_weight=name, loss_weight_first=3, loss_weight_last=0.5)
        assert torch.allclose(loss_weights(ar_step, config), torch.tensor([expected]), atol=1e-6)


def test_plan_of_an_image_does_not_depend_on_its_batch():
    config = FactorizationConfig(split="per_image")
    whole = plan_batch(config, 8, 8, seed=3, split_index=0, sample_indices=range(6))
    part = plan_batch(config, 8, 8, seed=3, split_index=4, sample_indices=[4, 5])
    assert whole.order[4:].equal(part.order) and whole.ar_step[4:].equal(part.ar_step)
    assert not whole.ar_step[0].equal(whole.ar_step[1])


def test_shared_split_depends_on_the_step_alone():
    config = FactorizationConfig()
    ranks = [plan_batch(config, 8, 8, seed=3, split_index=32, sample_indices=r) for r in ([32, 33], [34, 35])]
    assert ranks[0].ar_step.equal(ranks[1].ar_step) and ranks[0].ar_step.shape == (1, 64)
    assert not ranks[0].order.equal(ranks[1].order)


def test_context_is_all_but_the_last_step():
    plan = plan_batch(FactorizationConfig(distribution="fixed", num_ar_steps=3), 4, 4,
                      seed=0, split_index=0, sample_indices=[0])  # fmt: skip
    assert plan.num_context_tokens == int((plan.ar_step < 3).sum())
    assert plan.num_ar_steps == 3


def test_the_context_is_known_where_its_plan_was_moved_to():
    """The device here holds no numbers; reading them back from a GPU waits for it."""
    plan = Plan(torch.arange(6)[None], torch.tensor([[1, 1, 2, 3, 3, 3]]), 3)
    assert plan.to(torch.device("meta")).num_context_tokens == 3
    of_none = Plan(torch.zeros(0, 6, dtype=torch.int64), torch.zeros(0, 6, dtype=torch.int64), 3)
    assert of_none.to(torch.device("meta")).order.shape == (0, 6)
