"""The pipeline: AR step after AR step with the KV cache, called as diffusers' pipelines are.

Shape letters: B images, C image channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from causalfusion.codec.autoencoder import opened_network
from causalfusion.codec.codec import Codec
from causalfusion.config import SampleConfig
from causalfusion.config.generation import OrderName, SamplerName
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import StepEvent
from causalfusion.interop.diffusers.components import CausalFusionModel, TextTokenizer
from causalfusion.weight_files import share_saved

Callback = Callable[[DiffusionPipeline, int, float, dict[str, Any]], Any]
_MODULE = "pipeline.py"
"""File of a saved pipeline by which `custom_pipeline` finds the class."""
_OUTPUTS = ("pil", "np", "pt")


class CausalFusionPipeline(DiffusionPipeline):
    """Images of classes and prompts."""

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae", "tokenizer"]  # noqa: RUF012 (diffusers' own form)
    _callback_tensor_inputs = ["tokens", "positions"]  # noqa: RUF012

    def __init__(
        self, transformer: CausalFusionModel, vae: Any = None, tokenizer: TextTokenizer | None = None
    ) -> None:
        """`vae`: the autoencoder, one of diffusers'; None for a model of pixels. Raises UserError for parts
        that do not belong together."""
        spec = transformer.spec
        for name, part, needed in (
            ("vae", vae, spec.codec.autoencoder),
            ("tokenizer", tokenizer, spec.model.vocab_size),
        ):
            if (part is None) == bool(needed):
                state = "has none" if part is None else "has one, of which the model knows nothing"
                raise UserError(f"{name}: the pipeline {state}; give the {name} of the model's training")
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, tokenizer=tokenizer)
        self._text = None if tokenizer is None else tokenizer.opened(spec)

    @classmethod
    def of(cls, pipeline: Pipeline) -> Self:
        """A pipeline of this package in diffusers' form."""
        autoencoder = pipeline.codec.autoencoder
        network = getattr(autoencoder, "network", autoencoder)  # of an autoencoder without a posterior
        transformer = CausalFusionModel.of(pipeline.model, pipeline.spec, pipeline.sampling)
        return cls(transformer, network, TextTokenizer.of(pipeline.tokenizer))

    @classmethod
    def from_causalfusion(cls, model: Path | str, autoencoder: str = "") -> Self:
        """From whatever `Pipeline.load` takes: a model folder, a run, a packaged model, or a hub's name."""
        return cls.of(Pipeline.load(model, autoencoder=autoencoder))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # pyright: ignore
        """Write the components, and the file by which `custom_pipeline` finds this class."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        line = "from causalfusion.interop.diffusers import CausalFusionPipeline  # noqa: F401\n"
        (folder / _MODULE).write_text(
            f'"""The pipeline of this model, in the package causalfusion."""\n\n{line}'
        )
        super().save_pretrained(save_directory, **kwargs)
        for configuration in folder.glob("*/config.json"):
            share_saved(configuration.parent)

    @property
    def own(self) -> Pipeline:
        """The same model as a pipeline of this package, which edits and captions too."""
        transformer, vae = self.transformer, self.vae
        if transformer.dtype != torch.float32:
            raise UserError(
                f"the pipeline's weights are {transformer.dtype}; expected torch.float32: to compute in "
                "bfloat16, leave them and give autocast_dtype=torch.bfloat16"
            )
        network = None if vae is None else opened_network(vae, "of the pipeline")
        codec = Codec(
            transformer.spec.codec,
            None if network is None else network.network,
            None if network is None else network.image_size,
        )
        spec = transformer.spec
        codec = codec.to(transformer.device)
        process, sampling = make_process(spec.diffusion), transformer.sampling
        return Pipeline(transformer.model, codec, spec, process, tokenizer=self._text, sampling=sampling)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
        num_ar_steps: int | None = None,
        order: OrderName | None = None,
        sampler: SamplerName | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        config: SampleConfig | None = None,
        autocast_dtype: torch.dtype = torch.float32,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of prompts, of classes (numbers or names), or of pairs of them.

        `num_inference_steps` are the diffusion steps of each AR step: one number, or one for each. What is
        not given is as in `config`, or else as the model recommends. One generator: image i is image i of
        `seed_of(generator)`; several: image 0 of each one's seed, which are drawn one after another.

        `callback_on_step_end(pipeline, step, timestep, values)` is called after every diffusion step, steps
        counted through all AR steps. `values` holds `ar_step` and `num_ar_steps`, and those that are asked
        for: `tokens` (B, n, P) in progress, and their raster `positions` (B, n). What it returns is not used.

        Returns images as a list of Pillow's, or "np" (B, H, W, C), or "pt" (B, C, H, W), in [0, 1].
        """
        check_output(output_type)
        own = replace(self.own, autocast_dtype=autocast_dtype)
        own = own.at(height or own.image_size[0], width or own.image_size[1])
        steps = [num_inference_steps] if isinstance(num_inference_steps, int) else num_inference_steps
        given = {
            "diffusion_steps": None if steps is None else list(steps), "guidance_scale": guidance_scale,
            "num_ar_steps": num_ar_steps, "order": order, "sampler": sampler,
        }  # fmt: skip
        settings = config or own.default_sampling
        settings = settings.changed(**{name: value for name, value in given.items() if value is not None})
        prompts, labels = (as_listed(of, num_images_per_prompt) for of in (prompt, class_labels))
        count = len(prompts or labels or ())
        groups = _seeds(generator, count)
        watch = _Watch(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        drawn = []
        total = len(step_sizes(settings, own.codec.num_tokens, 0)) * len(groups)
        with self.progress_bar(total=total) as watch.bar:  # pyright: ignore[reportCallIssue]
            for seed, rows in groups:
                part = slice(rows.start, rows.stop)
                drawn.append(
                    own.generate(
                        labels and labels[part], settings, prompts=prompts and prompts[part], seed=seed,
                        watch=watch,
                    )
                )  # fmt: skip
        self.maybe_free_model_hooks()
        images = as_output(output_type, own, torch.cat(drawn))
        return ImagePipelineOutput(images=images) if return_dict else (images,)


class _Watch:
    """Passes diffusion steps on to a callback, and AR steps to a progress bar."""

    def __init__(self, pipeline: DiffusionPipeline, callback: Callback | None, asked: Sequence[str]) -> None:
        self.pipeline, self.callback, self.asked, self.count = pipeline, callback, list(asked), 0
        self.bar: Any = None
        unknown = set(asked) - {"tokens", "positions"}
        if unknown:
            raise UserError(
                f"callback_on_step_end_tensor_inputs has {min(unknown)}; expected tokens, positions, or both"
            )

    def __call__(self, event: StepEvent) -> None:
        if self.callback is not None:
            values = {"ar_step": event.ar_step, "num_ar_steps": event.num_ar_steps}
            values |= {name: getattr(event, name) for name in self.asked}
            timestep = int(event.timestep) if event.timestep % 1 == 0 else event.timestep
            self.callback(self.pipeline, self.count, timestep, values)
        self.count += 1
        if event.diffusion_step == event.num_diffusion_steps:
            self.bar.update()


def seed_of(generator: torch.Generator | None) -> int:
    """The seed of a call with this generator, which is drawn from it: the next call has another."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**31, (1,), generator=generator, device=device))


def _seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[tuple[int, range]]:
    """(seed, rows) of the images that are drawn together. Raises UserError for what is no generator, or
    another number of them than of images."""
    if generator is None or isinstance(generator, torch.Generator):
        return [(seed_of(generator), range(count))]
    if not isinstance(generator, Sequence):
        raise UserError(f"generator is {generator!r}; expected a torch.Generator, or one for each image")
    if len(generator) != count:
        raise UserError(f"{len(generator)} generators for {count} images; expected one, or one for each")
    return [(seed_of(each), range(row, row + 1)) for row, each in enumerate(generator)]


def as_listed(given: Any, copies: int) -> list[Any] | None:
    """What is asked for as a list, each as often as images of it are wanted."""
    if given is None:
        return None
    if copies < 1:
        raise UserError(f"num_images_per_prompt is {copies}; expected at least 1")
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return [each for each in several for _ in range(copies)]


def check_output(output_type: str) -> None:
    """Raises UserError for a type of output that there is not."""
    if output_type not in _OUTPUTS:
        raise UserError(f"output_type is {output_type!r}; expected one of {', '.join(_OUTPUTS)}")


def as_output(output_type: str, own: Pipeline, images: Tensor) -> Any:
    """Images (B, C, H, W) in [-1, 1] as a user of diffusers asked for them."""
    if output_type == "pil":
        return own.to_pil(images)
    found = (images.float() / 2 + 0.5).clamp(0, 1).cpu()
    return found if output_type == "pt" else found.permute(0, 2, 3, 1).numpy()
