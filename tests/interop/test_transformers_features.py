"""Features through transformers' classes: those of the pipeline, also from what was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import Pipeline, UserError

transformers = pytest.importorskip("transformers", reason="the extra eval is not installed")
CausalFusionFeatures = pytest.importorskip("causalfusion.interop.transformers").CausalFusionFeatures


def some_pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def test_a_saved_model_gives_the_features_of_the_pipeline(tmp_path: Path):
    ours, pictures = Pipeline.load("shapes"), some_pictures(3)
    CausalFusionFeatures.of(ours, layer=3).save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"}

    extractor = transformers.pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    found = torch.cat(extractor(pictures, return_tensors=True))
    expected = ours.features(pictures, layer=3, per_token=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.shape == (3, ours.codec.num_tokens, ours.model.config.hidden_size) and found.std() > 0.1
    pooled = torch.cat(extractor(pictures, return_tensors=True, pool=True))
    torch.testing.assert_close(pooled, ours.features(pictures, layer=3), rtol=0, atol=1e-6)


def test_the_auto_classes_know_it(digits_run: Path, tmp_path: Path):
    made = CausalFusionFeatures.from_causalfusion(digits_run, timestep=0.2, seed=5)
    made.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(model) is CausalFusionFeatures and model.config.timestep == 0.2
    pictures = some_pictures(2)
    inputs = processor(pictures)
    assert inputs["pixel_values"].shape == (2, 1, 8, 8)
    expected = Pipeline.load(digits_run).features(pictures, timestep=0.2, seed=5)
    torch.testing.assert_close(model(**inputs).pooler_output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(**inputs).pooler_output, expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="is no folder here"):
        CausalFusionFeatures.from_pretrained(tmp_path / "absent")


def test_bfloat16_computes_in_it_with_weights_of_float32(digits_run: Path, tmp_path: Path):
    CausalFusionFeatures.from_causalfusion(digits_run).save_pretrained(tmp_path)
    pixels = torch.rand(3, 1, 8, 8) * 2 - 1
    model = transformers.AutoModel.from_pretrained(tmp_path)
    expected = model(pixels).last_hidden_state
    low = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    found = low(pixels).last_hidden_state
    assert low.dtype == torch.float32 and 0 < (found - expected).norm() < 0.02 * expected.norm()
    with pytest.raises(UserError, match=r"weights are torch\.bfloat16; expected torch\.float32"):
        model.to(torch.bfloat16)(pixels)
    with pytest.raises(UserError, match=r"dtype is torch\.float16; expected torch\.float32 or"):
        transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float16)


def test_the_autoencoder_goes_where_the_model_goes(digits_run: Path):
    model = CausalFusionFeatures.from_causalfusion(digits_run)
    model.pipeline.codec.device = torch.device("meta")  # as if it lay elsewhere than the model
    model(torch.zeros(1, 1, 8, 8))
    assert model.pipeline.codec.device == model.device


@pytest.mark.parametrize(
    ("chosen", "answer"), [({"layer": 99}, "layer is 99"), ({"timestep": -1}, "level is -1")]
)
def test_what_the_model_does_not_have_is_refused_before_it_is_saved(chosen, answer):
    with pytest.raises(UserError, match=answer):
        CausalFusionFeatures.from_causalfusion("shapes", **chosen)
