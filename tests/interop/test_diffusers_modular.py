"""Modular blocks of diffusers: images of the pipeline, from blocks that can be looked into and exchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from causalfusion import Pipeline, SampleConfig, UserError
from causalfusion.interop.diffusers import CausalFusionBlocks, CausalFusionPipeline, seed_of
from causalfusion.interop.diffusers.modular import CausalFusionARLoop, CausalFusionDenoiseARStep

QUICK: dict[str, Any] = {"num_inference_steps": 3, "num_ar_steps": 4, "output_type": "pt"}
PROMPTS = ["a small red circle", "a large blue star"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.fixture(scope="module")
def own() -> Pipeline:
    return Pipeline.load("shapes")


@pytest.fixture(scope="module")
def pipe(own: Pipeline) -> Any:
    made = CausalFusionBlocks().init_pipeline()
    made.update_components(**CausalFusionPipeline.of(own).components)
    made.blocks.sub_blocks["ar_steps"].set_progress_bar_config(disable=True)
    return made


def test_images_equal_ours_for_equal_noise(pipe, own):
    asked = {"prompt": PROMPTS, "guidance_scale": 2.0, "sampler": "euler", **QUICK}
    images = pipe(**asked, generator=generator(), output="images")
    config = SampleConfig(num_ar_steps=4, diffusion_steps=[3], guidance_scale=2.0)
    ours = own.generate(prompts=PROMPTS, config=config, seed=seed_of(generator()))
    assert torch.equal(images, ours / 2 + 0.5) and images.std() > 0.01
    state = pipe(**asked, generator=generator())
    assert state.settings.sampler == "euler" and state.step_sizes == [16] * 4
    assert state.tokens.shape == (2, own.codec.num_tokens, own.model.config.token_dim)
    assert torch.equal(state.images, images)


def test_components_are_loaded_from_a_saved_pipeline(pipe, own, tmp_path: Path):
    CausalFusionPipeline.of(own).save_pretrained(tmp_path)
    loaded = CausalFusionBlocks().init_pipeline(str(tmp_path))
    loaded.load_components()
    asked = {"prompt": PROMPTS[0], **QUICK}
    images = [p(**asked, generator=generator(), output="images") for p in (pipe, loaded)]
    assert torch.equal(*images)


class Halved(CausalFusionDenoiseARStep):
    """A block of a user's own within the loop."""

    @property
    def inputs(self) -> list[InputParam]:
        return [*super().inputs, InputParam("factor", float, default=1.0)]

    def __call__(self, components: Any, block_state: Any, i: int) -> Any:
        components, block_state = super().__call__(components, block_state, i)
        block_state["new_tokens"] = block_state["new_tokens"] * block_state["factor"]
        return components, block_state


def test_a_block_within_the_loop_can_be_exchanged(pipe, own):
    blocks = CausalFusionBlocks()
    assert [*blocks.sub_blocks] == ["input", "context", "ar_steps", "decode"]
    loop = blocks.sub_blocks["ar_steps"]
    assert isinstance(loop, CausalFusionARLoop) and [*loop.sub_blocks] == ["begin", "denoise", "append"]
    loop.sub_blocks["denoise"] = Halved()
    loop.set_progress_bar_config(disable=True)
    changed = blocks.init_pipeline()
    changed.update_components(**pipe.components)
    asked = {"prompt": PROMPTS, "generator": None, **QUICK}
    same, half = (
        changed(**{**asked, "generator": generator()}, factor=factor, output="images") for factor in (1, 0)
    )
    assert torch.equal(same, pipe(**{**asked, "generator": generator()}, output="images"))
    grey = own.codec.decode_tokens(torch.zeros(2, own.codec.num_tokens, own.model.config.token_dim))
    assert torch.equal(half, (grey / 2 + 0.5).clamp(0, 1))


def test_what_cannot_be_drawn_is_refused(pipe):
    with pytest.raises(UserError, match="output_type is 'jpg'; expected one of pil"):
        pipe(prompt="a red star", output_type="jpg")
    with pytest.raises(UserError, match="several generators; expected one"):
        pipe(prompt=PROMPTS, generator=[generator(), generator()])
    with pytest.raises(UserError, match=r"load_components\(\)"):
        CausalFusionBlocks().init_pipeline()(prompt="a red star")
