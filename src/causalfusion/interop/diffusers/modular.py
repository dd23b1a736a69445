"""Modular blocks of diffusers: condition, context, a loop over AR steps with the KV cache, decoding.

    blocks = CausalFusionBlocks()
    pipe = blocks.init_pipeline("shapes-diffusers")
    pipe.load_components()
    images = pipe(prompt="a small red circle", num_inference_steps=20, output="images")

What passes from block to block is in the pipeline's state by the names of the outputs; a block of one's own
can stand between any two, also in the loop.

Shape letters: B images, L image tokens, n tokens of an AR step, P token dimension.
"""

# The values of a block's state are untyped in diffusers, and its classes override properties by attributes.
# pyright: reportOptionalMemberAccess=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import (
    BlockState,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.generate.context import Context, prefill
from causalfusion.generate.layout import draw_orders, to_raster
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import Drawing
from causalfusion.interop.diffusers.components import CausalFusionModel, TextTokenizer
from causalfusion.interop.diffusers.pipeline import (
    CausalFusionPipeline,
    as_listed,
    as_output,
    check_output,
    seed_of,
)

_NAME = "causalfusion"
_COMPONENTS = (
    ComponentSpec("transformer", CausalFusionModel, description="the model with its settings"),
    ComponentSpec("tokenizer", TextTokenizer, description="of a model with text"),
    ComponentSpec("vae", description="the autoencoder, of a model of latents"),
)
_OUTPUT_TYPE = InputParam(
    "output_type",
    str,
    default="pil",
    description="pil, np (B, H, W, C) or pt (B, C, H, W), the last two in [0, 1]",
)


def own_pipeline(components: Any) -> Pipeline:
    """The pipeline of this package that the components make. Raises UserError for parts that do not belong
    together."""
    if components.transformer is None:
        raise UserError("the pipeline has no transformer; call load_components(), or update_components(...)")
    return CausalFusionPipeline(components.transformer, components.vae, components.tokenizer).own


class _Block(ModularPipelineBlocks):
    """A block that takes and gives values of the pipeline's state."""

    model_name = _NAME

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [replace(spec) for spec in _COMPONENTS]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        block_state = self.get_block_state(state)
        self.run(components, block_state)
        self.set_block_state(state, block_state)  # pyright: ignore[reportArgumentType]
        return components, state

    def run(self, components: Any, values: Any) -> None:
        raise NotImplementedError


class CausalFusionInputStep(_Block):
    @property
    def description(self) -> str:
        return "What is to be drawn, and how: the labels, documents, settings and seed of the images."

    @property
    def inputs(self) -> list[InputParam]:
        steps = "diffusion steps of each AR step: one number, or one for each"
        return [
            InputParam("prompt", str | list[str], description="texts of the images"),
            InputParam("class_labels", int | str | list, description="classes, by number or name"),
            InputParam("num_inference_steps", int | list[int], description=steps),
            InputParam("guidance_scale", float, description="classifier-free guidance; 1: none"),
            InputParam("num_ar_steps", int, description="1: plain diffusion, 0: one for each token"),
            InputParam("order", str, description="order in which tokens are drawn"),
            InputParam("sampler", str, description="update rule of the diffusion steps"),
            InputParam("config", SampleConfig, description="all settings; default: as the model recommends"),
            InputParam("num_images_per_prompt", int, default=1, description="images of each prompt or class"),
            InputParam("generator", torch.Generator, description="whose seed the images have"),
            _OUTPUT_TYPE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("labels", Tensor, description="(B,) classes"),
            OutputParam("documents", list, description="texts before an image to come; None without text"),
            OutputParam("settings", SampleConfig, description="how the images are drawn"),
            OutputParam("seed", int, description="image i is a function of (seed, i)"),
        ]

    def run(self, components: Any, values: Any) -> None:
        check_output(values.output_type)
        own, steps = own_pipeline(components), values.num_inference_steps
        given = {
            "diffusion_steps": [steps] if isinstance(steps, int) else steps,
            "guidance_scale": values.guidance_scale, "num_ar_steps": values.num_ar_steps,
            "order": values.order, "sampler": values.sampler,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        values.settings = own.process.settled((values.config or own.default_sampling).changed(**given))
        prompts, labels = (
            as_listed(of, values.num_images_per_prompt) for of in (values.prompt, values.class_labels)
        )
        values.labels, values.documents = own.conditions(labels, prompts)
        if isinstance(values.generator, Sequence):
            raise UserError("there are several generators; expected one: image i is image i of its seed")
        values.seed = seed_of(values.generator)


class CausalFusionContextStep(_Block):
    @property
    def description(self) -> str:
        return "The KV cache of class and text, and the order and AR steps of the tokens to come."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("labels", Tensor, required=True),
            InputParam("documents", list),
            InputParam("settings", SampleConfig, required=True),
            InputParam("seed", int, required=True),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("context", Context, description="class, text and finished tokens, in a cache"),
            OutputParam("step_sizes", list, description="tokens of each AR step"),
            OutputParam("token_order", Tensor, description="(B, L) raster indices in the order of drawing"),
        ]

    def run(self, components: Any, values: Any) -> None:
        own, settings, count = own_pipeline(components), values.settings, len(values.labels)
        values.step_sizes = step_sizes(settings, own.codec.num_tokens, values.seed)
        order = draw_orders(settings, *own.grid, values.seed, range(count))
        values.token_order = order.to(own.device)
        prompts = own.prompts_of(values.documents)
        values.context = prefill(
            own.model, values.labels, settings, prompts=prompts, grid=own.grid, sizes=values.step_sizes
        )


class _LoopBlock(ModularPipelineBlocks):
    """A block within the loop over AR steps: `i` counts them from 0."""

    model_name = _NAME


class CausalFusionBeginARStep(_LoopBlock):
    @property
    def description(self) -> str:
        return "Begins an AR step: its tokens, against the context so far."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("context", Context, required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("ar_step", description="the AR step, with the positions of its tokens")]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int) -> tuple[Any, BlockState]:
        block_state["ar_step"] = block_state["drawing"].begin(block_state["context"], i)
        return components, block_state


class CausalFusionDenoiseARStep(_LoopBlock):
    @property
    def description(self) -> str:
        return "Takes the tokens of an AR step from noise to clean."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("ar_step")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("new_tokens", Tensor, description="(B, n, P) of the latest AR step")]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int) -> tuple[Any, BlockState]:
        block_state["new_tokens"] = block_state["drawing"].denoise(block_state["ar_step"], i)
        return components, block_state


class CausalFusionAppendARStep(_LoopBlock):
    @property
    def description(self) -> str:
        return "Appends the finished tokens to the context, which the next AR step sees."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("ar_step"), InputParam("new_tokens", Tensor)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("context", Context, description="class, text and finished tokens, in a cache")]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int) -> tuple[Any, BlockState]:
        if i + 1 < len(block_state["step_sizes"]):
            block_state["context"] = block_state["ar_step"].finish(block_state["new_tokens"])
        return components, block_state


class CausalFusionARLoop(LoopSequentialPipelineBlocks):
    model_name = _NAME
    block_classes = [CausalFusionBeginARStep, CausalFusionDenoiseARStep, CausalFusionAppendARStep]  # noqa: RUF012
    block_names = ["begin", "denoise", "append"]  # noqa: RUF012

    @property
    def description(self) -> str:
        return "The loop over AR steps: each is denoised against the cached context and appended to it."

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        return [replace(spec) for spec in _COMPONENTS]

    @property
    def loop_inputs(self) -> list[InputParam]:
        return [
            InputParam("settings", SampleConfig, required=True),
            InputParam("seed", int, required=True),
            InputParam("step_sizes", list, required=True),
            InputParam("token_order", Tensor, required=True),
        ]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("tokens", Tensor, description="(B, L, P) in raster order")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        values: Any = self.get_block_state(state)
        own, finished = own_pipeline(components), list[Tensor]()
        indices = range(len(values.token_order))
        noise = ImageNoise(values.seed, list(indices), own.codec.num_tokens, own.model.config.token_dim)
        values.drawing = Drawing.of(
            own.model, own.process, values.settings, values.token_order, values.step_sizes, noise,
            own.guided_numbers(values.settings),
        )  # fmt: skip
        with self.progress_bar(total=len(values.step_sizes)) as bar:
            for index in range(len(values.step_sizes)):
                components, values = self.loop_step(components, values, i=index)
                finished.append(values.new_tokens)
                bar.update()
        values.tokens = to_raster(torch.cat(finished, dim=1), values.token_order)
        self.set_block_state(state, values)
        return components, state


class CausalFusionDecodeStep(_Block):
    @property
    def description(self) -> str:
        return "Images of the tokens."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("tokens", Tensor, required=True), _OUTPUT_TYPE]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images", list, description="the images")]

    def run(self, components: Any, values: Any) -> None:
        own = own_pipeline(components)
        values.images = as_output(values.output_type, own, own.codec.decode_tokens(values.tokens))


class CausalFusionBlocks(SequentialPipelineBlocks):
    """From prompts and classes to images."""

    model_name = _NAME
    block_classes = [  # noqa: RUF012
        CausalFusionInputStep, CausalFusionContextStep, CausalFusionARLoop, CausalFusionDecodeStep,
    ]  # fmt: skip
    block_names = ["input", "context", "ar_steps", "decode"]  # noqa: RUF012

    @property
    def description(self) -> str:
        return "Images of prompts and classes, AR step after AR step with the KV cache."
