"""`python -m benchmarks.batches_of_sizes`: what the three ways to batch images of any size cost.

Synthetic pictures of many sizes and shapes, most of them scaled down to the same area, train a small model
in buckets, padded, and packed, a step of each in turn. For each: the speed relative to buckets, in tokens
that images need a second (of processor time, so that a busy machine counts little), as the images of a few
steps differ; and the share of the tokens in its rows that only fill them up. Two models: CausalFusion with
its AR steps, and the FiT recipe, one AR step and AdaLN.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.machine.processes import World
from causalfusion.train.batch import TokenBatch
from causalfusion.train.feed import open_training_data
from causalfusion.train.trainer import Trainer

WAYS = ("buckets", "padded", "packed")
MODELS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "causalfusion": ((), {}),
    "fit": (("fit",), {}),
}


def save_pictures(folder: Path, count: int, side: int) -> None:
    """Pictures of all shapes (the logarithm of width to height normal, deviation 0.3); three of four are
    larger than a square of this side, the others have down to a sixteenth of its area."""
    random = np.random.default_rng(0)
    for number in range(count):
        scale = 1.5 if number % 4 else random.uniform(0.25, 1)
        stretch = np.exp(random.normal(0, 0.3) / 2)
        width, height = (max(round(side * scale * s), 8) for s in (stretch, 1 / stretch))
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def config_of(model: str, way: str, folder: Path, given: argparse.Namespace) -> RunConfig:
    recipes, sections = MODELS[model]
    data = {"source": "folder", "path": str(folder), "image_size": "native", "max_area": given.side**2}
    if way == "packed":
        data["packed_tokens"] = given.packed_tokens
    values: dict[str, Any] = {
        "data": {**data, "batches": way},
        "codec": {"patch_size": 4},
        "model": {"hidden_size": given.width, "depth": 4, "num_heads": 4},
        "train": {"batch_size": given.batch_size, "attention": given.attention},
    }
    return load_config(*recipes, **values, **sections)


class Way:
    """A run of one of the ways, a step at a time."""

    def __init__(self, config: RunConfig, world: World) -> None:
        data = open_training_data(config, world)
        self.trainer, self.batches = Trainer(data.config, world), data.batches(0)
        self.seconds, self.needed, self.filled = 0.0, 0, 0

    def step(self, *, counts: bool) -> None:
        batch = next(self.batches)
        if counts:
            self._count(batch)
        begin = time.process_time()
        self.trainer.step(batch)
        if self.trainer.world.device.type == "cuda":
            torch.cuda.synchronize()
        if counts:
            self.seconds += time.process_time() - begin

    def _count(self, batch: TokenBatch) -> None:
        """Count the tokens that the step needs, and those in its rows."""
        objective, config = self.trainer.objective, self.trainer.config
        seen = self.trainer.progress.images_seen
        piece = objective.arrange(batch, objective.draw(batch, seed=config.train.seed, split_index=seen))
        sequence = objective.pack(piece, piece.noised_from(0, objective.process))
        plan, images = piece.plan, len(batch.tokens)
        lengths = plan.lengths if plan.lengths is not None else torch.full((images,), plan.order.shape[1])
        context = plan.context_lengths.expand(images)
        self.needed += int((lengths + context).sum()) + images * config.model.num_condition_tokens
        self.filled += len(sequence.segments[-1].values) * sequence.num_tokens

    @property
    def rate(self) -> float:
        """Needed tokens a second."""
        return self.needed / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--side", type=int, default=64, help="of the square with the largest area, in pixels")
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--packed-tokens", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    world = World(0, 1, torch.device(given.device))
    print("| model | batches | relative speed | filling |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        save_pictures(Path(name), given.pictures, given.side)
        for model in given.models:
            ways = {way: Way(config_of(model, way, Path(name), given), world) for way in WAYS}
            for number in range(given.steps + 2):
                for way in ways.values():
                    way.step(counts=number >= 2)
            base = ways["buckets"].rate
            for way, run in ways.items():
                share = 1 - run.needed / run.filled
                print(f"| {model} | {way} | {run.rate / base:.2f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
