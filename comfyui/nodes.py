"""The nodes. An IMAGE is (B, H, W, 3) float32 in [0, 1], a MASK (B, H, W) or (H, W), 1 where pixels change.

Of ComfyUI nothing is needed but, where it is there, its progress bar and its button to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causalfusion import Pipeline, SampleConfig, UserError
from causalfusion.generate.output import uses_classes
from causalfusion.generate.tokens import StepEvent
from causalfusion.machine.runtime import select_device

_CATEGORY = "CausalFusion"
_MODEL = "CAUSALFUSION_MODEL"
_RECOMMENDED = "recommended"
_SAMPLERS = (_RECOMMENDED, "ddpm", "ddim", "dpm++", "unipc", "euler", "heun", "sde", "sde_heun")
_ORDERS = ("random", "raster", "block_raster", "dilated")


def _inputs(**first: Any) -> dict[str, dict[str, Any]]:
    """The inputs of a node that draws, beginning with those given."""
    return {
        "required": {
            "model": (_MODEL,),
            **first,
            "prompt": ("STRING", {"default": "", "multiline": True, "tooltip": "Empty: no prompt"}),
            "class_name": ("STRING", {"default": "", "tooltip": "A class's name or number; empty: none"}),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True}),
            "ar_steps": ("INT", {"default": 1, "min": 0, "max": 65536, "tooltip": "0: one for each token"}),
            "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: as the model recommends"}),
            "guidance": (
                "FLOAT",
                {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "-1: as recommended"},
            ),
            "order": (list(_ORDERS), {"default": "random"}),
            "sampler": (list(_SAMPLERS), {"default": _RECOMMENDED}),
        }
    }


class LoadModel:
    CATEGORY, FUNCTION = _CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (_MODEL,), ("model",)
    DESCRIPTION = "A model folder, a training run, a packaged model (shapes), or user/model on the hub."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        devices = ["auto", "cpu", "cuda", "mps"]
        return {
            "required": {
                "model": ("STRING", {"default": "shapes"}),
                "device": (devices, {"default": "auto"}),
            },
            "optional": {"autoencoder": ("STRING", {"default": "", "tooltip": "Empty: the model's own"})},
        }

    def load(self, model: str, device: str = "auto", autoencoder: str = "") -> tuple[Pipeline]:
        """Raises UserError."""
        place = Path(model.strip()).expanduser()
        return (Pipeline.load(place, device=select_device(device), autoencoder=autoencoder.strip()),)


class LoadAdapter:
    CATEGORY, FUNCTION = _CATEGORY, "add"
    RETURN_TYPES, RETURN_NAMES = (_MODEL,), ("model",)
    DESCRIPTION = "The model with an adapter: a folder, a run that trained it, or user/heart on the hub."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A factor for its additions; words and classes come as they were learned"
        return {
            "required": {
                "model": (_MODEL,),
                "adapter": ("STRING", {"default": ""}),
                "strength": (
                    "FLOAT",
                    {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05, "tooltip": tooltip},
                ),
            }
        }

    def add(self, model: Pipeline, adapter: str = "", strength: float = 1.0) -> tuple[Pipeline]:
        """Several in a row add up; the model that comes in stays as it is. Raises UserError."""
        if not adapter.strip():
            raise UserError("no adapter is named; give a folder, a run that trained one, or user/heart")
        return (model.with_adapters({Path(adapter.strip()).expanduser(): strength}),)


class Sample:
    CATEGORY, FUNCTION = _CATEGORY, "sample"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Images of a prompt, of a class, or of both."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = {"default": 0, "min": 0, "max": 8192, "tooltip": "0: the model's own"}
        return _inputs(
            batch_size=("INT", {"default": 1, "min": 1, "max": 256}),
            width=("INT", size),
            height=("INT", size),
        )

    def sample(
        self,
        model: Pipeline,
        batch_size: int = 1,
        width: int = 0,
        height: int = 0,
        prompt: str = "",
        class_name: str = "",
        seed: int = 0,
        **drawing: Any,
    ) -> tuple[Tensor]:
        """(B, H, W, 3). Raises UserError."""
        own = model.image_size
        pipeline = model.at(height or own[0], width or own[1])
        config = _settings(model, **drawing)
        labels, prompts = _asked(pipeline, prompt, class_name, batch_size)
        images = pipeline.generate(labels, config, prompts=prompts, seed=seed, watch=_watch())
        return (_to_comfy(images),)


class Edit:
    CATEGORY, FUNCTION = _CATEGORY, "edit"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Draws the masked region of images anew; the rest is context, and stays as it is."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "1 draws the region anew, less keeps more of what it shows: KSampler's denoise"
        return _inputs(
            image=("IMAGE",),
            mask=("MASK",),
            variants=("INT", {"default": 1, "min": 1, "max": 64}),
            strength=("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01, "tooltip": tip}),
        )

    def edit(
        self,
        model: Pipeline,
        image: Tensor,
        mask: Tensor,
        variants: int = 1,
        strength: float = 1.0,
        prompt: str = "",
        class_name: str = "",
        seed: int = 0,
        **drawing: Any,
    ) -> tuple[Tensor]:
        """(B * variants, H, W, 3), the variants of an image next to each other. With a mask for each image,
        image b is drawn with `seed + b`. Raises UserError."""
        pipeline, images = _fitting(model, image), _from_comfy(model, image)
        masks = (mask[None] if mask.ndim == 2 else mask) > 0.5
        if len(masks) not in (1, len(images)) or masks.shape[1:] != images.shape[2:]:
            raise UserError(
                f"the mask is {tuple(mask.shape)}, the image {tuple(image.shape)}; expected a mask (H, W) of "
                "the image's size, or one for each image"
            )
        config, edited = _settings(model, **drawing), list[Tensor]()
        parts = [images] if len(masks) == 1 else images.split(1)
        for number, (part, inside) in enumerate(zip(parts, masks, strict=True)):
            labels, prompts = _asked(pipeline, prompt, class_name, len(part))
            new = pipeline.edit(
                part, inside.cpu(), labels, config, prompts=prompts, seed=seed + number,
                variants=variants, strength=strength, watch=_watch(),
            )  # fmt: skip
            edited.append(new)
        drawn = _to_comfy(torch.cat(edited))
        kept = image.cpu()[..., :3].float().repeat_interleave(variants, dim=0)
        inside = masks.cpu().expand(len(images), -1, -1).repeat_interleave(variants, dim=0)[..., None]
        return (torch.where(inside, drawn, kept),)


def _settings(
    model: Pipeline,
    ar_steps: int = 1,
    steps: int = 0,
    guidance: float = -1.0,
    order: str = "random",
    sampler: str = _RECOMMENDED,
) -> SampleConfig:
    """The sampling that a node's inputs mean. Raises UserError."""
    given: dict[str, Any] = {"num_ar_steps": ar_steps, "order": order}
    if steps:
        given["diffusion_steps"] = [steps]
    if guidance != -1.0:
        given["guidance_scale"] = guidance
    if sampler != _RECOMMENDED:
        given["sampler"] = sampler
    return model.default_sampling.changed(**given)


def _asked(
    pipeline: Pipeline, prompt: str, class_name: str, count: int
) -> tuple[list[int] | list[str] | None, list[str] | None]:
    """(labels, prompts) of so many images, of which one may be None. Raises UserError."""
    name, text = class_name.strip(), prompt.strip()
    reads, has_classes = pipeline.tokenizer is not None, uses_classes(pipeline)
    if text and not reads:
        remedy = ", and give a class" * has_classes
        raise UserError(f"this model was trained without text; leave the prompt empty{remedy}")
    if name and not has_classes:
        remedy = ", and give a prompt" * reads
        raise UserError(f"this model has no class condition; leave the class {name!r} out{remedy}")
    if not text and not name:
        ways = ["a prompt"] * reads + ["a class, by its name or number"] * has_classes
        if ways:
            raise UserError(f"what is to be drawn is not said; give {', or '.join(ways)}")
        return [pipeline.model.config.null_label] * count, None  # it draws what it has seen
    return [name] * count if name else None, [text] * count if text else None


def _fitting(pipeline: Pipeline, image: Tensor) -> Pipeline:
    """The pipeline for images of this size. Raises UserError where the model draws others."""
    if image.ndim != 4 or image.shape[-1] < 3:
        raise UserError(f"the image is {tuple(image.shape)}; expected (B, H, W, 3)")
    height, width = image.shape[1:3]
    if (height, width) != pipeline.image_size and not pipeline.codec.config.max_area:
        own = pipeline.image_size
        raise UserError(
            f"the image has {width}x{height} pixels, the model's have {own[1]}x{own[0]}; scale it and its "
            "mask before this node"
        )
    return pipeline.at(height, width)


def _from_comfy(pipeline: Pipeline, image: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] of an IMAGE."""
    pixels = image[..., :3].float().permute(0, 3, 1, 2) * 2 - 1
    if pipeline.codec.config.image_channels == 1:
        return (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return pixels


def _to_comfy(images: Tensor) -> Tensor:
    """An IMAGE of images (B, C, H, W) in [-1, 1]."""
    pixels = (images.float() / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1)
    return pixels.expand(-1, -1, -1, 3).contiguous()


def _watch() -> Callable[[StepEvent], None] | None:
    """Passes steps on to ComfyUI's progress bar, and stops where its user asks for that."""
    try:
        from comfy.model_management import (  # pyright: ignore[reportMissingImports]
            throw_exception_if_processing_interrupted,
        )
        from comfy.utils import ProgressBar  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    bar: list[Any] = []

    def watch(event: StepEvent) -> None:
        throw_exception_if_processing_interrupted()
        total = event.num_ar_steps * event.num_diffusion_steps
        bar[:] = bar or [ProgressBar(total)]
        done = (event.ar_step - 1) * event.num_diffusion_steps + event.diffusion_step
        bar[0].update_absolute(done, total)

    return watch


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "CausalFusionLoad": LoadModel,
    "CausalFusionLoadAdapter": LoadAdapter,
    "CausalFusionSample": Sample,
    "CausalFusionEdit": Edit,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "CausalFusionLoad": "CausalFusion: load a model",
    "CausalFusionLoadAdapter": "CausalFusion: load an adapter",
    "CausalFusionSample": "CausalFusion: draw images",
    "CausalFusionEdit": "CausalFusion: redraw under a mask",
}
