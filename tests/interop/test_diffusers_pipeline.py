"""The pipeline for diffusers: images equal to ours, saved and loaded by diffusers, called as its users do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from causalfusion import Pipeline, SampleConfig
from causalfusion.config import CodecConfig, DiffusionConfig, ModelConfig
from causalfusion.errors import UserError
from causalfusion.interop.diffusers import CausalFusionPipeline, TextTokenizer, seed_of
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, replace_model

QUICK = {"num_inference_steps": 3, "num_ar_steps": 4, "output_type": "pt"}


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shapes() -> CausalFusionPipeline:
    pipeline = CausalFusionPipeline.from_causalfusion("shapes")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of an autoencoder's latents, with classes alone and random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        norm_num_groups=4, latent_channels=2, block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    codec = CodecConfig(
        autoencoder="vae", image_height=8, image_width=8, image_channels=3, latent_channels=2, downsample=2
    )
    config = ModelConfig(
        hidden_size=32, depth=2, num_heads=2, num_class_tokens=2, num_classes=3, token_dim=2, grid_height=4,
        grid_width=4, position_embedding="rope",
    )  # fmt: skip
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    spec = ModelSpec(
        model=config, codec=codec, diffusion=DiffusionConfig(prediction_type="sample"),
        class_names=["cat", "dog", "owl"],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("latents") / "model"
    sampling = SampleConfig(num_ar_steps=2, diffusion_steps=[4], guidance_scale=2.0)
    replace_model(folder, spec, model.state_dict(), autoencoder=autoencoder, sampling=sampling)
    return folder


def test_images_equal_ours_for_equal_noise(shapes, latent_model: Path):
    """Prompts with the packaged model, classes with one of latents: the same numbers, not close ones."""
    prompts = ["a small red circle", "a large blue star"]
    images = shapes(
        prompts, generator=generator(), order="raster", sampler="dpm++", guidance_scale=2.0, **QUICK
    ).images
    config = SampleConfig(
        num_ar_steps=4, diffusion_steps=[3], order="raster", sampler="dpm++", guidance_scale=2.0
    )
    ours = Pipeline.load("shapes").generate(prompts=prompts, config=config, seed=seed_of(generator()))
    assert torch.equal(images, ours / 2 + 0.5) and images.std() > 0.01

    classes = CausalFusionPipeline.from_causalfusion(latent_model)
    images = classes(class_labels=["owl", "cat"], generator=generator(), output_type="pt").images
    config = SampleConfig(num_ar_steps=2, diffusion_steps=[4], guidance_scale=2.0)
    ours = Pipeline.load(latent_model).generate(["owl", 0], config, seed=seed_of(generator()))
    assert torch.equal(images, ours / 2 + 0.5) and images.std() > 0.01


@pytest.mark.parametrize("kind", ["shapes", "latent"])
def test_a_saved_pipeline_is_loaded_by_diffusers(kind, shapes, latent_model: Path, tmp_path: Path):
    """By this class, and by diffusers' own through `custom_pipeline`."""
    pipeline = shapes if kind == "shapes" else CausalFusionPipeline.from_causalfusion(latent_model)
    asked = {"prompt": "a red star"} if kind == "shapes" else {"class_labels": 1}
    before = pipeline(**asked, generator=generator(), **QUICK).images
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"][1] == "CausalFusionModel"
    assert (index["vae"][1], index["tokenizer"][1]) == (
        (None, "TextTokenizer") if kind == "shapes" else ("AutoencoderKL", None)
    )
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    modes = {path.stat().st_mode for kind in ("safetensors", "json") for path in tmp_path.rglob(f"*.{kind}")}
    assert len(modes) == 1, "others may read the weights if they may read the rest"
    own = CausalFusionPipeline.from_pretrained(tmp_path)
    custom = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True
    )
    assert type(custom) is CausalFusionPipeline
    for loaded in (own, custom):
        assert loaded.transformer.sampling == pipeline.transformer.sampling is not None
        assert torch.equal(loaded(**asked, generator=generator(), **QUICK).images, before)


def test_callbacks_and_generators(shapes):
    seen = []

    def callback(pipeline, step, timestep, values):
        assert pipeline is shapes
        seen.append((step, timestep, values["ar_step"], tuple(values["tokens"].shape[:2]), sorted(values)))
        return {}

    images = shapes(
        "a red circle", generator=generator(), num_images_per_prompt=2, callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["tokens", "positions"], **QUICK,
    ).images  # fmt: skip
    length = shapes.own.codec.num_tokens
    assert [row[0] for row in seen] == list(range(12))
    assert [row[2] for row in seen] == [ar_step for ar_step in (1, 2, 3, 4) for _ in range(3)]
    assert {row[3] for row in seen} == {(2, length // 4)}
    assert seen[0][4] == ["ar_step", "num_ar_steps", "positions", "tokens"] and seen[0][1] > seen[1][1]
    assert not torch.equal(images[0], images[1])
    one = generator()
    first, second = (shapes("a red circle", generator=one, **QUICK).images for _ in range(2))
    torch.testing.assert_close(first[0], images[0], atol=3e-4, rtol=1e-3)
    assert not torch.equal(first, second)
    each = shapes(["a red circle"] * 2, generator=[generator(), generator()], **QUICK).images
    assert torch.equal(each[0], each[1]) and torch.equal(each[0], first[0])


def test_a_list_that_a_model_recommends_does_not_overrule_an_argument(shapes):
    asked = {"prompt": "a red circle", "num_ar_steps": 4, "output_type": "pt", "num_inference_steps": 2}
    listed = SampleConfig(sampler="dpm++", sizes=[32, 32])
    found = [
        shapes(config=config, generator=generator(), **asked).images
        for config in (listed, SampleConfig(sampler="dpm++"))
    ]
    assert torch.equal(*found)


def test_output_types(shapes):
    asked = {"prompt": "a red circle", "num_inference_steps": 2}
    tensor = shapes(**asked, generator=generator(), output_type="pt").images
    array = shapes(**asked, generator=generator(), output_type="np").images
    (pictures,) = shapes(**asked, generator=generator(), return_dict=False)
    assert (array == tensor.permute(0, 2, 3, 1).numpy()).all() and 0 <= array.min() <= array.max() <= 1
    assert abs(np.asarray(pictures[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({}, "expected labels, prompts, or both"),
        ({"prompt": "x", "output_type": "latent"}, "output_type is 'latent'; expected one of pil, np, pt"),
        ({"prompt": "x", "num_images_per_prompt": 0}, "num_images_per_prompt is 0; expected at least 1"),
        ({"prompt": "x", "generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"prompt": "x", "generator": 5}, "generator is 5; expected a torch.Generator"),
        ({"prompt": "x", "callback_on_step_end_tensor_inputs": ["latents"]}, "has latents; expected tokens"),
        ({"prompt": "x", "num_ar_steps": 10**6}, "sample.num_ar_steps is 1000000; expected at most"),
    ],
)
def test_bad_input_is_one_line(asked, answer, shapes):
    with pytest.raises(UserError, match=answer) as raised:
        shapes(**asked)
    assert "\n" not in str(raised.value)


def test_parts_that_do_not_belong_together_are_refused(shapes, tmp_path: Path):
    with pytest.raises(UserError, match="tokenizer: the pipeline has none; give the tokenizer of the model"):
        CausalFusionPipeline(shapes.transformer)
    with pytest.raises(UserError, match="vae: the pipeline has one, of which the model knows nothing"):
        CausalFusionPipeline(shapes.transformer, object(), shapes.tokenizer)
    with pytest.raises(UserError, match=r"has no tokenizer\.json; expected a folder that save_pretrained"):
        TextTokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the pipeline's tokenizer\.json cannot be read"):
        CausalFusionPipeline(shapes.transformer, None, TextTokenizer("{"))
