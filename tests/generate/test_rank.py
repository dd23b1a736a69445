"""The model as its own judge: the likelihood is the written one's, and the best of several draws is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from causalfusion.codec.codec import open_codec
from causalfusion.codec.tokenizer import train_tokenizer
from causalfusion.config import CodecConfig, DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.diffusion.process import make_process
from causalfusion.documents import Image, Text
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.rank import caption_log_likelihoods, generate_best
from causalfusion.model.transformer import Transformer
from causalfusion.rng import derive_seed
from causalfusion.saved.folder import ModelSpec

PROMPTS = ["a small red circle", "a large blue star above a red one", "a red one"]
SAMPLE = SampleConfig(diffusion_steps=[3], sampler="dpm++", num_ar_steps=2, guidance_scale=2.0)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    tokenizer = train_tokenizer(PROMPTS * 2, 300)
    config = ModelConfig(
        hidden_size=32, depth=2, num_heads=2, num_class_tokens=0, num_classes=1, token_dim=48, grid_height=2,
        grid_width=2, max_text_tokens=40, vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    codec = CodecConfig(patch_size=4, image_height=8, image_width=8, image_channels=3)
    spec = ModelSpec(model=config, codec=codec, diffusion=DiffusionConfig(prediction_type="sample"))
    return Pipeline(
        model.eval().requires_grad_(False), open_codec(codec, image_shape=None), spec,
        make_process(spec.diffusion), tokenizer=tokenizer,
    )  # fmt: skip


def test_the_likelihood_is_that_of_writing_the_caption_token_by_token(pipeline):
    images = pipeline.generate(None, SAMPLE, prompts=PROMPTS)
    found = caption_log_likelihoods(pipeline, images, PROMPTS)
    tokenizer = pipeline.with_text()
    for row, prompt in enumerate(PROMPTS):
        tokens = pipeline.codec.encode_tokens(images[row : row + 1], None)
        expected, ids = 0.0, tokenizer.encode(prompt)
        label = torch.tensor([pipeline.model.config.null_label])
        # Of the markers, the end alone counts: that a caption is begun is given.
        for place, token in enumerate([*ids, tokenizer.markers.text_end]):
            begun = [[Image(0), Text(tuple(ids[:place]), open=True)]]
            logits = pipeline.read(label, begun, tokens).text_logits
            expected += float(torch.log_softmax(logits[0], dim=-1)[token])
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)


def test_the_likelihood_does_not_depend_on_the_batch(pipeline):
    images = pipeline.generate(None, SAMPLE, prompts=PROMPTS)
    together = caption_log_likelihoods(pipeline, images, PROMPTS)
    alone = torch.cat([caption_log_likelihoods(pipeline, images[i : i + 1], [PROMPTS[i]]) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-5)


def test_the_best_of_several_draws_is_kept_for_each_prompt(pipeline):
    draws = [
        pipeline.generate(None, SAMPLE, prompts=PROMPTS, seed=s)
        for s in (7, *(derive_seed(7, "candidate", draw) for draw in (1, 2, 3)))
    ]
    scores = torch.stack([caption_log_likelihoods(pipeline, images, PROMPTS) for images in draws])
    expected = torch.stack([draws[int(k)][row] for row, k in enumerate(scores.argmax(0))])
    best = generate_best(pipeline, None, PROMPTS, SAMPLE, 4, seed=7)
    assert torch.equal(best, expected)
    assert len(set(scores.argmax(0).tolist())) > 1, "else the test could not tell draws apart"
    assert torch.equal(generate_best(pipeline, None, PROMPTS, SAMPLE, 1, seed=7), draws[0])


def test_a_prompt_that_fits_before_an_image_alone_is_refused_with_candidates(pipeline):
    """Behind the image that is judged stands one marker more."""
    fitting = "a" + " a" * 35
    longest = f"{fitting} a"
    assert len(pipeline.with_text().encode(longest)) == pipeline.model.config.max_text_tokens - 3
    assert len(generate_best(pipeline, None, [longest], SAMPLE, 1)) == 1
    assert len(generate_best(pipeline, None, [fitting], SAMPLE, 2)) == 1
    with pytest.raises(UserError, match="has 37 tokens; to judge candidates, the model has room for 36"):
        generate_best(pipeline, None, [fitting, longest], SAMPLE, 2)


def test_candidates_need_prompts(pipeline):
    with pytest.raises(UserError, match="candidates is 2; expected 1 where there are no prompts"):
        generate_best(replace(pipeline), [0], None, SAMPLE, 2)
    with pytest.raises(UserError, match="candidates is 0; expected at least 1"):
        generate_best(pipeline, None, PROMPTS, SAMPLE, 0)
