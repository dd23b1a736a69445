"""Draws and the loss: what is random is addressed, what is computed follows the paper."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, FactorizationConfig, ModelConfig, RunConfig, TrainConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.model.transformer import Transformer
from causalfusion.train.draws import Draws, draw
from causalfusion.train.ema import EMA
from causalfusion.train.optimizer import learning_rate
from causalfusion.train.step import Objective, TokenBatch

MODEL = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=2, num_classes=4, token_dim=3,
                    grid_height=4, grid_width=4)  # fmt: skip
PROCESS = DDPM(DiffusionConfig())


def draws_of(factorization, indices, split_index=0, dropout=0.1):
    return draw(
        factorization, MODEL, PROCESS, dropout, seed=1, split_index=split_index, sample_indices=indices
    )


def batch_of(tokens: Tensor) -> TokenBatch:
    """Images of class 0."""
    return TokenBatch(tokens, torch.zeros(len(tokens), dtype=torch.int64), torch.arange(len(tokens)))


def errors_of(model, config: RunConfig, tokens: Tensor, draws: Draws) -> Tensor:
    objective = Objective(config, DDPM(config.diffusion))
    return objective.errors(model, objective.arrange(batch_of(tokens), draws)).image


def test_draws_of_a_sample_do_not_depend_on_its_batch():
    config = FactorizationConfig(split="per_image", timesteps="per_ar_step", timesteps_per_ar_step=2)
    whole, part = draws_of(config, range(8)), draws_of(config, range(5, 8), split_index=5)
    assert whole.noise[5:].equal(part.noise) and whole.levels[5:].equal(part.levels)
    assert whole.drop_class[5:].equal(part.drop_class) and whole.plan.order[5:].equal(part.plan.order)


def test_shared_timestep_is_one_per_image():
    timesteps = PROCESS.timesteps(draws_of(FactorizationConfig(), range(64)).levels)
    assert timesteps.shape == (64, 1)
    assert timesteps[:, 0].unique().numel() > 50 and int(timesteps.min()) >= 0 and int(timesteps.max()) < 1000


@pytest.mark.parametrize("copies", [1, 4])
def test_own_timestep_per_ar_step_and_copy(copies):
    config = FactorizationConfig(
        distribution="fixed", num_ar_steps=5, timesteps="per_ar_step", timesteps_per_ar_step=copies
    )
    draws = draws_of(config, range(3))
    for image in range(3):
        for copy in draws.levels[image].view(copies, 16):
            levels = [copy[draws.plan.ar_step[0] == s].unique() for s in range(1, 6)]
            assert all(len(level) == 1 for level in levels)
            assert len({int(level) for level in levels}) > 1


def test_class_dropout_rate():
    dropped = draws_of(FactorizationConfig(), range(2000)).drop_class.double().mean()
    assert abs(float(dropped) - 0.1) < 5 * (0.1 * 0.9 / 2000) ** 0.5
    assert not draws_of(FactorizationConfig(), range(200), dropout=0.0).drop_class.any()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_model_that_knows_the_answer_has_no_loss(prediction_type, copies):
    """The target and the noised tokens stand in the same order, whatever the plan."""
    config = FactorizationConfig(timesteps_per_ar_step=copies, split="per_image")
    draws = draws_of(config, range(3))
    tokens = torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(0))

    def knows(sequence, backend):
        noised = sequence.segments[-1]
        raster = 4 * noised.places[..., :1] + noised.places[..., 1:]
        index = raster.expand(-1, -1, 3)
        clean = tokens.gather(1, index)
        t = noised.timesteps.expand(-1, clean.shape[1])
        signal = torch.tensor(PROCESS.schedule.alphas_cumprod)[t].sqrt()[:, :, None]
        level = (1 - signal**2).sqrt()
        noise = (noised.values.double() - signal * clean) / level
        answer = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - level * clean}
        return type("Predictions", (), {"image": answer[prediction_type]})

    diffusion = DiffusionConfig(prediction_type=prediction_type)
    errors = errors_of(knows, RunConfig(model=MODEL, diffusion=diffusion), tokens, draws)
    assert errors.shape == (3, 16 * copies, 3)
    assert float(errors.max()) < 1e-6


def test_loss_is_the_weighted_mean():
    config = FactorizationConfig(distribution="fixed", num_ar_steps=3)
    draws = draws_of(config, range(2))
    errors = torch.rand(2, 16, 3, generator=torch.Generator().manual_seed(0))
    total, start = 0.0, 0
    for step in range(1, 4):
        size = int((draws.plan.ar_step == step).sum())
        total += float(errors[:, start : start + size].sum()) * (2 - start / 16)
        start += size
    objective = Objective(RunConfig(model=MODEL, factorization=config), PROCESS)
    loss = objective.image_loss(errors, objective.arrange(batch_of(torch.zeros(2, 16, 3)), draws))
    assert float(loss) == pytest.approx(total / errors.numel(), rel=1e-6)


def test_null_label_is_the_row_behind_the_classes():
    """Dropped classes meet row num_classes, for any number of classes."""
    for num_classes in (1, 10, 2000):
        config = replace(MODEL, num_classes=num_classes)
        model = Transformer(config)
        draws = draws_of(FactorizationConfig(), range(4))
        draws = replace(draws, drop_class=torch.ones(4, dtype=torch.bool))
        torch.nn.init.normal_(model.image_out.weight)
        errors_of(model, RunConfig(model=config), torch.zeros(4, 16, 3), draws).mean().backward()
        touched = model.class_embedding.table.weight.grad.abs().sum(1).nonzero().flatten()
        assert touched.tolist() == [num_classes]


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(lr=1.0, warmup_images=1000, batch_size=100, images=11_000)
    rates = [learning_rate(config, n) for n in range(0, 1100, 100)]
    assert rates == sorted(rates) and rates[0] == pytest.approx(1 / 11) and rates[-1] == 1.0
    cosine = replace(config, lr_schedule="cosine")
    assert learning_rate(cosine, 6000) == pytest.approx(0.5) and learning_rate(
        cosine, 11_000
    ) == pytest.approx(0)


def test_a_rate_that_falls_at_the_end_follows_images_or_time():
    config = TrainConfig(lr=1.0, lr_schedule="wsd", lr_decay=0.25, images=1000, batch_size=10)
    rates = [learning_rate(config, n) for n in (0, 500, 750, 875, 1000)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0])
    timed = replace(config, images=10**9, minutes=2.0)
    rates = [learning_rate(timed, 500, seconds) for seconds in (0, 60, 90, 105, 120, 130)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0, 0])
    cosine = replace(timed, lr_schedule="cosine")
    assert learning_rate(cosine, 500, 60.0) == pytest.approx(0.5)


def test_ema_by_the_formula_and_frozen_tensors_as_their_own_average():
    model = torch.nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    ema = EMA(model.named_parameters())
    start = model.weight.detach().clone()
    expected = start.double()
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(step)
        ema.update(0.9)
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
    assert torch.allclose(ema.state_dict()["weight"].double(), expected, atol=1e-6)
    assert ema.state_dict()["bias"].data_ptr() == model.bias.data_ptr()
