"""`python -m benchmarks.averages`: how far averages that are reconstructed after training lie from those over
all steps, by the number format of the snapshots.

A small model of digits trains for 600 steps with averages of widths 0.05 and 0.1, of which there are 30
snapshots. Errors are distances of all weights together, relative to their norm.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data
from causalfusion.train.post_hoc import Profile, combine, exponent_of
from causalfusion.train.trainer import Trainer

TRACKED, MADE = (0.05, 0.1), (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
STEPS, EVERY = 600, 20
FORMATS = (torch.float32, torch.float16, torch.bfloat16)


def settings(out: Path) -> RunConfig:
    config = load_config(
        "digits",
        train={"batch_size": 16, "lr": 2e-3, "ema_widths": list(TRACKED), "ema_snapshot_images": 16 * EVERY},
        model={"hidden_size": 32, "depth": 2, "num_heads": 2, "num_class_tokens": 2},
        codec={"patch_size": 2},
    )
    return replace(config, out=str(out))


def flat(tensors: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].detach().flatten() for name in names])


def trained() -> tuple[Tensor, list[tuple[Profile, Tensor]]]:
    """(the weights after each step (steps, weights), the stored averages)."""
    world = World(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        data = open_training_data(settings(Path(folder)), world)
        trainer, batches = Trainer(data.config, world), data.batches(0)
        names = list(trainer.ema.parameters)
        steps, stored = [], []
        for step in range(1, STEPS + 1):
            trainer.step(next(batches))
            steps.append(flat(dict(trainer.model.named_parameters()), names))
            if step % EVERY == 0:
                for width, average in trainer.widths.averages.items():
                    stored.append((Profile(width, step), flat(average.averages, names)))
    return torch.stack(steps), stored


def over_all(steps: Tensor, width: float) -> Tensor:
    """The average over all steps, float64."""
    edges = (np.arange(len(steps) + 1) / len(steps)) ** (exponent_of(width) + 1)
    return torch.from_numpy(np.diff(edges)) @ steps.double()


def main() -> None:
    steps, stored = trained()
    apart = (over_all(steps, TRACKED[0]) - over_all(steps, TRACKED[1])).norm() / steps[-1].norm()
    print(f"the averages of widths {TRACKED[0]} and {TRACKED[1]} are {apart:.1e} apart\n")
    print("| width | profile off by | coefficients' norm | float32 | float16 | bfloat16 |")
    print("|---|---|---|---|---|---|")
    for width in MADE:
        coefficients, distance = combine([profile for profile, _ in stored], Profile(width, STEPS))
        wanted, cells = over_all(steps, width), []
        for dtype in FORMATS:
            made = sum(c * v.to(dtype).double() for c, (_, v) in zip(coefficients, stored, strict=True))
            cells.append(f"{(made - wanted).norm() / wanted.norm():.1e}")
        norm = np.linalg.norm(coefficients)
        print(f"| {width} | {distance:.2%} | {norm:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
