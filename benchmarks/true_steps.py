"""`python -m benchmarks.true_steps MODEL`: in which AR step, or at which noise, images of `shapes` go wrong.

Images of S AR steps, of which the first 0, 1, ... are not drawn but are those of the real image of the
prompt; the model draws the rest. Where it fails although it begins from the truth, a later AR step is to
blame; where it fails only without, the first ones are. `--sizes` gives the numbers of tokens of the AR steps.
With `--strengths`, images of one AR step begin instead from the real image, noised to these shares of the
path.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from causalfusion.config import SampleConfig
from causalfusion.data.scene_captions import parse_caption
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.measures.scenes import read_scene, scene_accuracy
from causalfusion.evaluate.text_image import by_number_of_objects
from causalfusion.factorization import even_split
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float

BATCH = 25
"""Images with the same random order."""


def accuracy(
    pipeline: Pipeline,
    data: Shapes,
    sizes: Sequence[int],
    true_steps: int,
    sample: SampleConfig,
    count: int,
    strength: float = 1.0,
) -> float:
    """Share of images that are as their caption says, the first `true_steps` of AR steps of these sizes being
    the real image's, and the others beginning from it with less `strength` than 1."""
    height, width = pipeline.grid
    cell = pipeline.codec.cell
    described, scenes = [], []
    for start in range(0, count, BATCH):
        indices = range(start, min(start + BATCH, count))
        order = np.random.default_rng(start).permutation(height * width)
        drawn = np.ones(height * width, dtype=bool)
        drawn[order[: sum(sizes[:true_steps])]] = False
        pixels = np.kron(drawn.reshape(height, width), np.ones((cell, cell), dtype=bool))
        real = to_float(np.stack([data.read(index).image for index in indices]))
        prompts = [data.captions(index)[0] for index in indices]
        images = pipeline.edit(
            real, torch.from_numpy(pixels), None, sample, prompts=prompts, seed=start, paste=False,
            strength=strength,
        )  # fmt: skip
        scenes += [read_scene(image) for image in pipeline.codec.to_uint8(images)]
        described += [d for d in map(parse_caption, prompts) if d is not None]
    return scene_accuracy(described, scenes)["all"]


def print_strengths(pipeline: Pipeline, scenes: Sequence[Shapes], given: argparse.Namespace) -> None:
    """A table of all numbers of objects."""
    sample = SampleConfig(
        sampler="dpm++", diffusion_steps=[given.diffusion_steps], guidance_scale=given.guidance_scale
    )
    print("| begun from | one object | two objects | three objects |\n|---|---|---|---|")
    for strength in given.strengths:
        shares = [
            accuracy(pipeline, data, [pipeline.codec.num_tokens], 0, sample, given.count, strength)
            for data in scenes
        ]
        print(f"| {strength:g} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.true_steps", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path)
    parser.add_argument("--ar-steps", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", help="tokens of each AR step, instead of even ones")
    parser.add_argument("--strengths", type=float, nargs="+", help="instead of true AR steps")
    parser.add_argument("--diffusion-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=200, help="scenes for each figure")
    given = parser.parse_args()
    pipeline = Pipeline.load(given.model)
    scenes = [data for _, data in by_number_of_objects("test", pipeline.codec.config.image_height)]
    if given.strengths:
        print_strengths(pipeline, scenes, given)
        return
    sizes = given.sizes or even_split(pipeline.codec.num_tokens, given.ar_steps)
    print(f"AR steps of {sizes} tokens\n\n| true AR steps | one object | two objects |\n|---|---|---|")
    for true_steps in range(len(sizes)):
        sample = SampleConfig(
            sampler="dpm++", sizes=sizes[true_steps:], diffusion_steps=[given.diffusion_steps],
            guidance_scale=given.guidance_scale,
        )  # fmt: skip
        shares = [accuracy(pipeline, data, sizes, true_steps, sample, given.count) for data in scenes[:2]]
        print(f"| {true_steps} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
