"""`python -m benchmarks.strength MODEL`: what an edit of a whole image keeps, and what it changes, by its
strength.

Real scenes of `shapes` with one object, asked for with another colour, and with another shape: the share of
images with one object that has what was asked for, and how far its centre moved, in pixels. Writes
strength.json and strength.png, of a few scenes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import table
from causalfusion.config import SampleConfig
from causalfusion.data.drawing import COLORS, SHAPES, SceneObject
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.measures.scenes import read_scene
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float
from causalfusion.machine.progress import tell
from causalfusion.pictures.compose import below, framed, paragraph, sheet, to_tiles

SHOWN = 6
BATCH = 50
CHANGES = ("color", "shape")
WORDS = {"color": "another colour:", "shape": "another shape:"}


def asked_of(data: Shapes, index: int, change: str) -> tuple[SceneObject, SceneObject, str]:
    """(the object of scene `index`, the one to ask for, in words)."""
    (before,) = data.scene(index).figures
    others = [name for name in (COLORS if change == "color" else SHAPES) if name != getattr(before, change)]
    name = others[index % len(others)]
    after = replace(before, color=name) if change == "color" else replace(before, shape=name)
    return before, after, f"a {after.size} {after.color} {after.shape}"


def edits(
    pipeline: Pipeline, data: Shapes, indices: Sequence[int], change: str, strength: float, seed: int = 0
) -> np.ndarray:
    """(B, H, W, 3) uint8: these scenes, edited as a whole."""
    real = to_float(np.stack([data.read(index).image for index in indices]))
    prompts = [asked_of(data, index, change)[2] for index in indices]
    config = replace(pipeline.sampling or SampleConfig(), diffusion_steps=[20])
    edited = pipeline.edit(
        real, "all", None, config, prompts=prompts, strength=strength, seed=seed, image_indices=indices
    )
    return pipeline.codec.to_uint8(edited)


def measured(pipeline: Pipeline, data: Shapes, count: int, change: str, strength: float) -> dict[str, float]:
    right, moved = 0, []
    for start in range(0, count, BATCH):
        indices = range(start, min(start + BATCH, count))
        for index, image in zip(indices, edits(pipeline, data, indices, change, strength), strict=True):
            before, after, _ = asked_of(data, index, change)
            figures = read_scene(image).figures
            if len(figures) == 1 and (figures[0].color, figures[0].shape) == (after.color, after.shape):
                right += 1
                moved.append(data.side * math.hypot(figures[0].x - before.x, figures[0].y - before.y))
    return {"right": right / count, "moved": float(np.median(moved)) if moved else math.nan}


def picture(pipeline: Pipeline, data: Shapes, strengths: Sequence[float], out: Path) -> None:
    """The first scenes, half of them with another colour, half with another shape, by strength."""
    tiles, rows = [], []
    for index in range(SHOWN):
        change = CHANGES[index % 2]
        images = [edits(pipeline, data, [index], change, strength)[0] for strength in strengths]
        tiles += to_tiles(to_float(np.stack([data.read(index).image, *images])), 3, "nearest")
        rows.append(asked_of(data, index, change)[2])
    names = ["original", *(f"strength {strength:g}" for strength in strengths)]
    grid = sheet(tiles, len(names), rows, names)
    framed(below([paragraph("Scenes, edited as a whole for the words on the left", 700, 17), grid])).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strength", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--count", type=int, default=100, help="scenes for each figure")
    parser.add_argument("--out", type=Path, default=Path("runs/strength"))
    given = parser.parse_args()
    pipeline = Pipeline.load(given.model)
    data = Shapes("test", side=pipeline.codec.config.image_height, num_objects=1)
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for strength in given.strengths:
        tell(f"strength {strength:g}")
        found[f"{strength:g}"] = {
            change: measured(pipeline, data, given.count, change, strength) for change in CHANGES
        }
        write_whole(given.out / "strength.json", json.dumps(found, indent=1) + "\n")
    header = [
        "strength",
        *(f"{WORDS[change]} {what}" for change in CHANGES for what in ("right", "moved, pixels")),
    ]
    rows = [
        [strength, *(cell for c in CHANGES for cell in (f"{of[c]['right']:.0%}", f"{of[c]['moved']:.1f}"))]
        for strength, of in found.items()
    ]
    print("\n".join(table(header, rows)))
    picture(pipeline, data, given.strengths, given.out / "strength.png")


if __name__ == "__main__":
    main()
