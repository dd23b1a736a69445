"""The model: sizes as in the paper, S = 1 as plain attention, conditioning where it belongs."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from causalfusion.config import FactorizationConfig, ModelConfig
from causalfusion.config.recipes import SIZES, load_config
from causalfusion.factorization import Plan, ar_step_of, plan_batch
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.sequence import pack_training

SMALL = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=4, num_classes=5, token_dim=6,
                    grid_height=3, grid_width=4)  # fmt: skip


def randomised(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def inputs(config: ModelConfig, plan: Plan, batch_size: int = 2):
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, config.num_tokens, config.token_dim)
    clean, noised = (torch.randn(shape, generator=generator) for _ in range(2))
    labels = torch.arange(batch_size)
    timesteps = torch.tensor([[10], [700]])[:batch_size]
    return pack_training(labels, config.num_condition_tokens, clean, noised, plan, timesteps)


@pytest.mark.parametrize(
    ("size", "millions"), [("L", 369.520), ("XL", 713.988), ("H", 1045.204), ("H48", 1235.635)]
)
def test_parameter_counts(size, millions):
    """The paper: L has 368M parameters with 64 class tokens at 256 tokens."""
    config = load_config(
        "imagenet256", size, codec={"autoencoder": "kl16.ckpt"}, data={"path": "imagenet"}
    ).model
    config = replace(config, num_classes=1000, token_dim=16, grid_height=16, grid_width=16)
    with torch.device("meta"):
        count = count_parameters(Transformer(config))
    assert count / 1e6 == pytest.approx(millions, abs=0.001)


def test_every_size_is_a_valid_model():
    for size in SIZES:
        config = load_config(
            "imagenet256", size, codec={"autoencoder": "kl16.ckpt"}, data={"path": "x"}
        ).model
        assert config.hidden_size % config.num_heads == 0


def test_one_step_equals_plain_full_attention():
    """S = 1 is an in-context DiT: no mask at all over class and noised tokens."""
    model = randomised(SMALL)
    plan = Plan(torch.arange(12).expand(2, -1), torch.ones(1, 12, dtype=torch.int64), 4)
    sequence = inputs(SMALL, plan)

    def unmasked(layer, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    expected = model(sequence, attend=lambda layer, q, k, v: _class_sees_itself(unmasked, layer, q, k, v))
    assert torch.allclose(model(sequence).image, expected.image, atol=1e-6)


def _class_sees_itself(attend, layer, q, k, v):
    out = attend(layer, q, k, v)
    if q.shape[2] < k.shape[2]:
        return out
    head = attend(layer, q[:, :, :4], k[:, :, :4], v[:, :, :4])
    return torch.cat([head, out[:, :, 4:]], dim=2)


@pytest.mark.parametrize("conditioning", ["in_context", "adaln_zero"])
def test_starts_as_zero_and_conditions_reach_the_output(conditioning):
    config = replace(SMALL, conditioning=conditioning)
    plan = plan_batch(FactorizationConfig(), 3, 4, seed=0, split_index=3, sample_indices=[0, 1])
    assert Transformer(config)(inputs(config, plan)).image.eq(0).all()
    model = randomised(config)
    base = model(inputs(config, plan)).image
    sequence = inputs(config, plan)
    *others, noised = sequence.segments
    later = replace(sequence, segments=(*others, replace(noised, timesteps=noised.timesteps + 100)))
    assert not torch.allclose(model(later).image, base, atol=1e-3)
    class_segment = replace(others[0], values=torch.full((2,), config.null_label))
    other_class = replace(sequence, segments=(class_segment, *sequence.segments[1:]))
    assert not torch.allclose(model(other_class).image, base, atol=1e-3)


@pytest.mark.parametrize("position_embedding", ["sincos", "learnable", "rope"])
def test_order_of_tokens_within_a_step_does_not_matter(position_embedding):
    """Tokens carry their place with them: permuting an AR step permutes its predictions."""
    config = replace(SMALL, position_embedding=position_embedding)
    model = randomised(config)
    generator = torch.Generator().manual_seed(2)
    clean, noised = torch.randn(2, 1, 12, 6, generator=generator).unbind(0)
    labels, timesteps = torch.tensor([1]), torch.tensor([[300]])
    ar_step = ar_step_of([5, 7])[None]
    order = torch.randperm(12, generator=generator)[None]
    swap = torch.cat([torch.randperm(5, generator=generator), 5 + torch.randperm(7, generator=generator)])
    first = model(pack_training(labels, 4, clean, noised, Plan(order, ar_step, 4), timesteps)).image
    swapped = Plan(order[:, swap], ar_step, 4)
    second = model(pack_training(labels, 4, clean[:, swap], noised[:, swap], swapped, timesteps)).image
    assert torch.allclose(second, first[:, swap], atol=1e-5)
    assert not torch.allclose(second, first, atol=1e-2)


def test_repeated_class_tokens_share_one_row():
    config = replace(SMALL, num_class_tokens=8, class_token_repeats=4)
    model = Transformer(config)
    assert model.class_embedding.table.weight.shape == (6, 2 * 32)
    tokens = model.class_embedding(torch.tensor([3])) - model.class_embedding.position
    assert torch.allclose(tokens[:, :2], tokens[:, 6:])


def test_timesteps_touch_noised_tokens_only():
    """The last AR step's context is blind to t: its cached keys are those of clean tokens."""
    model = randomised(SMALL)
    seen = {}

    def spy(layer, q, k, v):
        seen.setdefault(layer, []).append(k)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :, -q.shape[2] :])

    from causalfusion.mask import dense_mask

    plan = Plan(torch.arange(12).expand(2, -1), ar_step_of([5, 7])[None], 4)
    for shift in (0, 50):
        sequence = inputs(SMALL, plan)
        *others, noised = sequence.segments
        sequence = replace(sequence, segments=(*others, replace(noised, timesteps=noised.timesteps + shift)))
        mask = dense_mask(sequence.clean, sequence.ar_step)
        model(sequence, attend=spy)
    for before, after in seen.values():
        assert torch.equal(before[:, :, :9], after[:, :, :9])
        assert not torch.allclose(before[:, :, 9:], after[:, :, 9:])
