"""Features of images: which tokens see what, at which level, in which order."""

from dataclasses import replace

import pytest
import torch

from causalfusion.config import (
    DiffusionConfig,
    EncoderConfig,
    FactorizationConfig,
    HeadConfig,
    ImageWeightsConfig,
    TextConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.generate.features import layer_number
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.reading import learned_clean
from causalfusion.model.transformer import Transformer

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(scope="module")
def pipeline(models) -> Pipeline:
    return Pipeline.load(models["classes"])


def with_one_step(pipeline: Pipeline) -> Pipeline:
    """The same weights as those of a model that had one AR step in training."""
    spec = replace(pipeline.spec, factorization=FactorizationConfig(distribution="fixed"))
    return replace(pipeline, spec=spec)


def of_model(pipeline: Pipeline, **changes) -> Pipeline:
    """A pipeline around a model of another kind, with random weights."""
    config = replace(pipeline.model.config, max_images=1, **changes)
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    spec = replace(pipeline.spec, model=config)
    return replace(pipeline, model=model.eval().requires_grad_(False), spec=spec)


def test_pooled_features_are_the_mean_of_those_of_tokens_whatever_the_batch(pipeline):
    each = pipeline.features(IMAGES, layer=1, per_token=True)
    assert each.shape == (3, 4, 32)
    assert torch.allclose(pipeline.features(IMAGES, layer=1), each.mean(1))
    for timestep in (None, 0.3):
        whole = pipeline.features(IMAGES, timestep=timestep)
        assert torch.allclose(pipeline.features(IMAGES, timestep=timestep, batch_size=2), whole, atol=1e-4)


def test_negative_layers_count_from_the_last(pipeline):
    assert torch.equal(pipeline.features(IMAGES, layer=-1), pipeline.features(IMAGES, layer=2))
    assert torch.equal(pipeline.features(IMAGES, layer=-3), pipeline.features(IMAGES, layer=0))
    for layer in (3, -4):
        with pytest.raises(UserError, match=r"expected 0 \(what enters the first block\) to 2"):
            layer_number(pipeline.model.config, layer)


def test_a_share_and_its_timestep_are_one_level(pipeline):
    assert torch.equal(pipeline.features(IMAGES, timestep=0.3), pipeline.features(IMAGES, timestep=300))
    for wrong in (-0.1, 1001):
        with pytest.raises(UserError, match="the noise level is"):
            pipeline.features(IMAGES, timestep=wrong)


@pytest.mark.parametrize("path", ["ddpm", "rectified_flow"])
def test_levels_lie_at_their_share(path):
    process = make_process(DiffusionConfig(path=path, prediction_type="sample", num_timesteps=1000))
    for share in (0.0, 0.2, 0.29, 0.999):
        assert float(process.shares(process.levels_at(torch.tensor(share)))) == pytest.approx(share, abs=1e-6)


def test_features_do_not_depend_on_the_order_within_one_ar_step(pipeline):
    steps = ar_step_of([4])[None]
    turned = Plan(torch.tensor([[3, 1, 0, 2]]), steps, 2)
    for timestep in (None, 0.3):
        plain = pipeline.features(IMAGES, per_token=True, timestep=timestep)
        found = pipeline.features(IMAGES, per_token=True, timestep=timestep, plan=turned)
        assert torch.allclose(found, plain, atol=1e-4), "and come back in raster order"


def test_tokens_see_those_of_earlier_ar_steps_alone(pipeline):
    plan = Plan(torch.tensor([[3, 1, 0, 2]]), ar_step_of([1, 3])[None], 2)
    changed = IMAGES.clone()
    changed[:, :, :4] = 0.5  # the upper two tokens, of the second AR step
    for timestep in (None, 0.3):
        a, b = (pipeline.features(x, per_token=True, timestep=timestep, plan=plan) for x in (IMAGES, changed))
        assert torch.allclose(a[:, 3], b[:, 3], atol=1e-5), "token 3, of the first step, sees itself alone"
        assert not torch.allclose(a[:, 2], b[:, 2], atol=1e-2)
    changed = IMAGES.clone()
    changed[:, :, 4:, 4:] = 0.5  # token 3 itself
    a, b = (pipeline.features(x, per_token=True, timestep=0.3, plan=plan) for x in (IMAGES, changed))
    assert not torch.allclose(a[:, 0], b[:, 0], atol=1e-2), "the others see it, clean"


def test_a_model_of_one_ar_step_is_told_that_clean_tokens_are_at_the_lowest_level(pipeline):
    """It never saw tokens without a timestep."""
    one = with_one_step(pipeline)
    clean, lowest = one.features(IMAGES), one.features(IMAGES, timestep=0.0)
    assert torch.allclose(clean, lowest, rtol=0.2, atol=0.5)
    assert not torch.allclose(clean, pipeline.features(IMAGES), rtol=0.2, atol=0.5)
    assert learned_clean(pipeline.spec) and not learned_clean(one.spec)
    several = replace(one.spec, factorization=FactorizationConfig(distribution="fixed", num_ar_steps=0))
    assert learned_clean(several), "0 is one for each token"


@pytest.mark.parametrize("name", ["text", "both"])
@pytest.mark.parametrize("image_first", [0.0, 0.2])
def test_models_with_text_read_images_without_one(models, name, image_first):
    pipeline = Pipeline.load(models[name])
    text = TextConfig(image_first=image_first, caption_first=1 - image_first)
    pipeline = replace(pipeline, spec=replace(pipeline.spec, text=text))
    for timestep in (None, 0.2):
        found = pipeline.features(IMAGES, timestep=timestep, per_token=True)
        assert found.shape == (3, 4, 32) and found.std() > 0
        assert torch.allclose(
            found[:1], pipeline.features(IMAGES[:1], timestep=timestep, per_token=True), atol=1e-4
        )


def test_heads_per_token_never_see_noise(pipeline):
    per_token = HeadConfig(kind="per_token", width=16, depth=1)
    causal = of_model(pipeline, head=per_token)
    asking = of_model(pipeline, head=replace(per_token, ask="previous"))
    encoder = EncoderConfig(depth=1, hidden_size=24, num_heads=2)
    both = of_model(pipeline, head=per_token, context="bidirectional", encoder=encoder)
    changed = IMAGES.clone()
    changed[:, :, 4:, 4:] = 0.5  # the last token
    for each, sees_later in ((causal, True), (asking, False), (both, True)):
        a, b = (each.features(x, per_token=True) for x in (IMAGES, changed))
        assert torch.allclose(a[:, 0], b[:, 0], atol=1e-4) != sees_later
        with pytest.raises(UserError, match="expected clean"):
            each.features(IMAGES, timestep=0.2)
    assert both.features(IMAGES, layer=1).shape == (3, 24), "layer 1 is the encoder's"
    assert both.features(IMAGES, layer=-1).shape == (3, 32)


def test_images_of_another_size_have_their_own_tokens(pipeline):
    large = torch.rand(2, 3, 12, 16) * 2 - 1
    assert pipeline.features(large, per_token=True, timestep=0.1).shape == (2, 12, 32)
    with pytest.raises(UserError, match="expected a multiple of 4"):
        pipeline.features(large[:, :, :10])


def test_a_plan_that_does_not_fit_is_refused(pipeline):
    plan = Plan(torch.arange(9)[None], ar_step_of([9])[None], 3)
    with pytest.raises(UserError, match="the plan's order has shape"):
        pipeline.features(IMAGES, plan=plan)


def test_bfloat16_gives_float32_features_close_by(pipeline):
    half = replace(pipeline, autocast_dtype=torch.bfloat16)
    found, exact = half.features(IMAGES), pipeline.features(IMAGES)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.99


def test_modulated_blocks_and_image_tokens_with_weights_of_their_own(models):
    """DiT's blocks, without class tokens; a grafted model's image tokens, of another width than its text."""
    dit = of_model(Pipeline.load(models["classes"]), conditioning="adaln_zero", num_class_tokens=0)
    own = ImageWeightsConfig(kind="own", hidden_size=16)
    grafted = of_model(Pipeline.load(models["text"]), image_weights=own)
    for pipeline, width in ((dit, 32), (grafted, 16)):
        for layer in (0, 1, 2):
            clean, noised = (pipeline.features(IMAGES, layer=layer, timestep=t) for t in (None, 0.4))
            assert clean.shape == (3, width) and not torch.allclose(clean, noised, atol=1e-2)
