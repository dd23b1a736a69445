"""Pictures of the output of a model with text: prompts with images, images with captions, edits.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.rank import generate_best
from causalfusion.generate.regions import region_mask
from causalfusion.pictures.compose import (
    ACCENT,
    BLANK,
    below,
    beside,
    cover,
    framed,
    outline,
    paragraph,
    sheet,
    to_tiles,
    with_texts,
)

SCALE = 5


def prompts_picture(
    pipeline: Pipeline,
    prompts: Sequence[str],
    config: SampleConfig,
    ar_steps: Sequence[int],
    candidates: int,
    *,
    seed: int = 0,
) -> Image.Image:
    """A picture with, for every prompt, an image for each number of AR steps and the best of `candidates`."""
    rows = []
    for steps in ar_steps:
        diffusion_steps = config.diffusion_steps if steps == 1 else [max(config.diffusion_steps[0] // 2, 1)]
        settings = replace(config, num_ar_steps=steps, diffusion_steps=diffusion_steps)
        rows.append(_tiles(pipeline.generate(None, settings, prompts=prompts, seed=seed)))
    rows.append(_tiles(generate_best(pipeline, None, prompts, config, candidates, seed=seed)))
    groups = [beside(list(tiles), gap=4) for tiles in zip(*rows, strict=True)]
    names = ", ".join(f"S = {steps}" for steps in ar_steps)
    title = (
        f"Prompts and their images: {names} AR steps, the best of {candidates} by the model's own judgement"
    )
    return framed(below([paragraph(title, 1000, 17), sheet(with_texts(groups, prompts), 2)]))


def captions_picture(
    pipeline: Pipeline, images: Tensor, config: WriteConfig, *, seed: int = 0
) -> tuple[Image.Image, list[str]]:
    """(picture of images (B, C, H, W) with the model's captions, these captions)."""
    captions = pipeline.caption(images, config, seed=seed)
    title = "Images that the model has not seen in training, and its captions"
    tiles = with_texts(_tiles(images), captions)
    return framed(below([paragraph(title, 900, 17), sheet(tiles, 8)])), captions


def edits_picture(
    pipeline: Pipeline,
    images: Tensor,
    prompts: Sequence[str],
    regions: Sequence[str],
    config: SampleConfig,
    *,
    seed: int = 0,
) -> Image.Image:
    """A picture with, for each image (B, C, H, W): the image, the part that is kept, and the image with its
    region regenerated for its prompt."""
    tiles, texts = [], []
    for image, prompt, region in zip(images, prompts, regions, strict=True):
        mask = region_mask(region, *image.shape[1:])
        edited = pipeline.edit(image[None], mask, None, config, prompts=[prompt], seed=seed)
        before, kept, after = _tiles(torch.stack([image, image, edited[0].cpu()]))
        cover(kept, mask, BLANK)
        outline(kept, mask, ACCENT)
        tiles.append(beside([before, kept, after], gap=4))
        texts.append(prompt)
    title = "Text-guided edits: an image, the kept part, and the rest regenerated for the prompt below"
    return framed(below([paragraph(title, 900, 17), sheet(with_texts(tiles, texts), 2)]))


def _tiles(images: Tensor) -> list[Image.Image]:
    """Tiles of images, small ones enlarged without interpolation, so that every pixel shows."""
    scale = max(1, SCALE * 32 // images.shape[-1])
    return [_with_border(tile) for tile in to_tiles(images, scale, "nearest")]


def _with_border(tile: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (tile.width + 2, tile.height + 2), BLANK)
    canvas.paste(tile, (1, 1))
    return canvas
