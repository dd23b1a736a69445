"""What a trained model makes of images: its layers' outputs, for probes and distances.

An image is read without its class or caption: the null class stands before it, or an empty text. Its tokens
are clean, as the paper's are in fine-tuning, or noised to a level. A model that never learned from clean
tokens, as it had but one AR step, is told that they are at the lowest level.

Shape letters: B images, L image tokens, P token dimension, D width of a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import SupportsIndex

import torch
from torch import Tensor

from causalfusion.config import ModelConfig
from causalfusion.errors import UserError
from causalfusion.factorization import Plan
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.reading import Reading
from causalfusion.generate.token_pipeline import TokenPipeline
from causalfusion.machine.runtime import autocast
from causalfusion.model.layers import layer_outputs, num_layers, readable


def layer_number(config: ModelConfig, layer: int) -> int:
    """The number of a layer, of which negative ones count from the last. Raises UserError where there is
    none."""
    last = num_layers(config)
    if not isinstance(layer, SupportsIndex) or not -last - 1 <= layer <= last:
        raise UserError(
            f"layer is {layer}; expected 0 (what enters the first block) to {last} (the last), or -1 (the "
            f"last) to {-last - 1}"
        )
    return layer % (last + 1)


def share_of(pipeline: TokenPipeline, timestep: float) -> float:
    """Where on the path of noise a level lies that is given as a share of it, or, above 1, as a timestep.
    Raises UserError for what is neither, and for a model that never sees noised tokens."""
    if pipeline.model.config.per_token:
        raise UserError(
            f"the noise level is {timestep:g}; expected clean, as noised tokens never enter the "
            "transformer of a model with a per-token head"
        )
    total = pipeline.spec.diffusion.num_timesteps
    if not 0 <= timestep <= total:
        raise UserError(
            f"the noise level is {timestep:g}; expected a share of the path from 0 (the least noise) to 1, "
            f"or a timestep up to {total}"
        )
    return timestep if timestep <= 1 else timestep / total


def read_layers(
    pipeline: TokenPipeline,
    tokens: Tensor,
    layers: Collection[int],
    *,
    timestep: float | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
) -> dict[int, Tensor]:
    """(B, L, D) float32, in raster order, of each of these layers, for clean tokens (B, L, P) in raster order
    on the pipeline's grid. One pass through the layers that are needed.

    `timestep`: noise of this level is added (see `share_of`), a function of (seed, image index); None: none.
    `plan`: the AR steps in which the tokens are read; by default all in one, or those of a head that asks for
    one token after another. Raises UserError for what the model cannot read.
    """
    config = pipeline.model.config
    wanted = {layer_number(config, layer) for layer in layers}
    indices = list(range(len(tokens)) if image_indices is None else image_indices)
    plan = _plan_of(pipeline, plan, len(tokens))
    noised, told = None, None
    if timestep is not None:
        share = torch.tensor(share_of(pipeline, timestep))
        levels = pipeline.process.levels_at(share).to(tokens.device).expand(len(tokens), 1)
        noise = ImageNoise(seed, indices, *tokens.shape[1:])
        raster = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        noised = pipeline.process.add_noise(tokens, noise.initial(1, raster).to(tokens), levels)
        told = pipeline.process.timesteps(levels)[0, 0].item()
    with torch.no_grad(), autocast(pipeline.device, pipeline.autocast_dtype):
        sequence = reading_of(pipeline).sequence(tokens, plan, noised, told)
        outputs = layer_outputs(pipeline.model, readable(sequence), wanted)
    back = plan.order.argsort(1)[:, :, None]
    return {
        layer: segments[-1].float().take_along_dim(back, 1) for layer, segments in sorted(outputs.items())
    }


def image_features(
    pipeline: TokenPipeline,
    images: Tensor,
    layers: Collection[int],
    *,
    timestep: float | None = None,
    plan: Plan | None = None,
    batch_size: int = 64,
    seed: int = 0,
    first: int = 0,
) -> dict[int, Tensor]:
    """`read_layers` of images (B, C, H, W) in [-1, 1] of the pipeline's size, in batches, on the CPU. Noise
    is that of the images `first`, first + 1, ..."""
    if not len(images):
        raise UserError("there are no images; expected at least one")
    parts: list[dict[int, Tensor]] = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        batch = images[rows].to(pipeline.device)
        of_batch = plan.images(rows) if plan is not None and len(plan.order) > 1 else plan
        found = read_layers(
            pipeline,
            pipeline.codec.encode_tokens(batch, None),
            layers,
            timestep=timestep,
            plan=of_batch,
            seed=seed,
            image_indices=range(first + start, first + start + len(batch)),
        )
        parts.append({layer: values.cpu() for layer, values in found.items()})
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def reading_of(pipeline: TokenPipeline) -> Reading:
    """How the model of a pipeline reads images."""
    markers = None if pipeline.tokenizer is None else pipeline.tokenizer.markers
    return Reading(pipeline.spec, pipeline.process, pipeline.grid, markers)


def _plan_of(pipeline: TokenPipeline, plan: Plan | None, count: int) -> Plan:
    """The plan for this number of images, checked."""
    config, (height, width) = pipeline.model.config, pipeline.grid
    num_tokens = height * width
    if plan is None:
        return reading_of(pipeline).plan(count, pipeline.device)
    if config.context == "bidirectional" and plan.num_ar_steps > 1:
        raise UserError(
            "a model of bidirectional context sees all known tokens; expected a plan of one AR step"
        )
    if plan.lengths is not None or plan.order.shape[1] != num_tokens or len(plan.order) not in (1, count):
        raise UserError(
            f"the plan's order has shape {tuple(plan.order.shape)}; expected ({count} or 1, {num_tokens}): "
            "the images, and the tokens of each"
        )
    return replace(plan, order=plan.order.expand(count, -1)).to(pipeline.device)
