"""`python -m benchmarks.graft RUN [RUN ...]`: what a language model that learned to draw understands.

Each run draws single figures for captions of five kinds: as in training; of pairs of shape and colour that
training never showed; in a sentence of another form; and with words that no caption of training has, for the
colour, the size or the shape alone. The oracle reads the figure; a figure counts where the attribute that is
asked for is right. `--random OUT` first writes the language model of the first argument with random weights,
which is what a run is compared with:

    causalfusion convert llm HuggingFaceTB/SmolLM2-135M --out models/smollm2
    python -m benchmarks.graft models/smollm2 --random models/random
    causalfusion train --config graft-shapes --train.init models/smollm2 --out runs/known
    causalfusion train --config graft-shapes --train.init models/random --out runs/random
    python -m benchmarks.graft runs/known runs/random
    python -m benchmarks.graft runs/known runs/random --picture graft.png \\
        --titles "with SmolLM2" "with random numbers"
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from causalfusion.config import SampleConfig
from causalfusion.data.drawing import COLORS, SHAPES, SIZES, SceneObject
from causalfusion.data.shapes import HELD_OUT
from causalfusion.evaluate.measures.scenes import read_scene
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float
from causalfusion.pictures.compose import below, beside, framed, paragraph, sheet, to_tiles

OTHER_COLORS = {
    "red": "crimson", "green": "emerald", "blue": "cobalt", "yellow": "golden", "purple": "violet",
    "orange": "tangerine", "cyan": "turquoise", "black": "ebony",
}  # fmt: skip
OTHER_SIZES = {"small": "minuscule", "large": "huge"}
OTHER_SHAPES = {"circle": "disc", "square": "box", "diamond": "rhombus"}
SHOWN = (
    "a large red circle",
    "a large crimson circle",
    "a large emerald star",
    "a huge golden square",
    "could you draw me a diamond? it should be large and purple",
)
"""Captions of the picture."""
ATTRIBUTES = ("color", "size", "shape")
SAMPLING = SampleConfig(sampler="dpm++", diffusion_steps=[20], guidance_scale=2.0)

Asked = tuple[str, SceneObject, tuple[str, ...]]
"""A caption, the figure that it asks for, and the attributes that count."""


def asked(count: int) -> dict[str, list[Asked]]:
    """`count` captions of each kind, every attribute equally often as far as possible."""
    figures = [SceneObject(s, c, z, 0.5, 0.5, 0.0) for z in SIZES for c in COLORS for s in SHAPES]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(figures))
    known = [figures[i] for i in order if (figures[i].shape, figures[i].color) not in HELD_OUT]
    unseen = [figures[i] for i in order if (figures[i].shape, figures[i].color) in HELD_OUT]

    def some(of: Sequence[SceneObject]) -> list[SceneObject]:
        return [of[i % len(of)] for i in range(count)]

    shaped = [f for f in known if f.shape in OTHER_SHAPES]
    return {
        "as in training": [(f"a {f.size} {f.color} {f.shape}", f, ATTRIBUTES) for f in some(known)],
        "unseen pairs": [(f"a {f.size} {f.color} {f.shape}", f, ATTRIBUTES) for f in some(unseen)],
        "another sentence": [
            (f"could you draw me a {f.shape}? it should be {f.size} and {f.color}", f, ATTRIBUTES)
            for f in some(known)
        ],
        "other words for colours": [
            (f"a {f.size} {OTHER_COLORS[f.color]} {f.shape}", f, ("color",)) for f in some(known)
        ],
        "other words for sizes": [
            (f"a {OTHER_SIZES[f.size]} {f.color} {f.shape}", f, ("size",)) for f in some(known)
        ],
        "other words for shapes": [
            (f"a {f.size} {f.color} {OTHER_SHAPES[f.shape]}", f, ("shape",)) for f in some(shaped)
        ],
    }


def measure(pipeline: Pipeline, questions: Sequence[Asked], batch_size: int = 50) -> dict[str, float]:
    """The share of right figures by attribute, and of figures with all of those that count."""
    right: dict[str, list[bool]] = {name: [] for name in (*questions[0][2], "all")}
    for start in range(0, len(questions), batch_size):
        part = questions[start : start + batch_size]
        images = pipeline.generate(
            prompts=[caption for caption, _, _ in part],
            config=SAMPLING,
            image_indices=range(start, start + len(part)),
        )
        for pixels, (_, figure, attributes) in zip(pipeline.codec.to_uint8(images), part, strict=True):
            drawn = read_scene(pixels).figures
            found = [
                len(drawn) > 0 and getattr(drawn[0], name) == getattr(figure, name) for name in attributes
            ]
            for name, is_right in zip(attributes, found, strict=True):
                right[name].append(is_right)
            right["all"].append(all(found) and len(drawn) == 1)
    return {name: sum(values) / len(values) for name, values in right.items()}


def save_picture(out: Path, pipelines: Mapping[str, Pipeline], columns: int = 4) -> None:
    """What each of the models, by its title, draws for each of `SHOWN`."""
    prompts = [prompt for prompt in SHOWN for _ in range(columns)]
    drawn = {
        title: pipeline.codec.to_uint8(pipeline.generate(prompts=prompts, config=SAMPLING))
        for title, pipeline in pipelines.items()
    }
    tiles = {title: to_tiles(to_float(pixels), 3) for title, pixels in drawn.items()}
    side_by_side(tiles, columns).save(out)


def side_by_side(tiles: Mapping[str, Sequence[Image.Image]], columns: int) -> Image.Image:
    """The tiles of each model under its title, a row of them for each of `SHOWN`, which stands below it."""
    blocks = []
    for title, of_model in tiles.items():
        rows = []
        for row, prompt in enumerate(SHOWN):
            drawn = of_model[row * columns : (row + 1) * columns]
            pictures = sheet(drawn, columns, title=None if row else title)
            rows += [pictures, paragraph(prompt, columns * drawn[0].width)]
        blocks.append(below(rows, gap=4))
    return framed(beside(blocks), 8)


def randomise(model: Path, out: Path, seed: int = 0) -> None:
    """A language model's folder with random weights, of the spread of its own."""
    shutil.copytree(model, out)
    weights, generator = load_file(model / "model.safetensors"), torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        value = value.float()
        drawn = torch.ones_like(value)
        if value.ndim > 1:
            drawn.normal_(std=float(value.std()), generator=generator)
        weights[name] = drawn
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=200, help="captions of each kind")
    parser.add_argument("--random", type=Path, help="only write the first model with random weights there")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--picture", type=Path, help="only draw a few captions, into this file")
    parser.add_argument("--titles", nargs="+", help="of the picture's parts; default: the runs' names")
    parser.add_argument("--weights", default="ema", choices=("ema", "raw"))
    given = parser.parse_args()
    if given.random:
        randomise(given.runs[0], given.random, given.seed)
        return
    titles = given.titles or [str(run) for run in given.runs]
    if len(set(titles)) != len(given.runs):
        parser.error(f"--titles are {', '.join(titles)}; expected one of its own for each run")
    pipelines = [Pipeline.load(run, weights=given.weights) for run in given.runs]
    if given.picture:
        save_picture(given.picture, dict(zip(titles, pipelines, strict=True)))
        return
    questions = asked(given.count)
    print(f"| captions | {' | '.join(str(run) for run in given.runs)} |")
    print("|---" * (len(given.runs) + 1) + "|")
    print(f"| images seen | {' | '.join(f'{p.spec.images_seen:,}' for p in pipelines)} |")
    figures = {}
    for kind, of_kind in questions.items():
        cells = []
        for run, pipeline in zip(given.runs, pipelines, strict=True):
            found = measure(pipeline, of_kind)
            figures[f"{run}: {kind}"] = found
            half = 1.96 * math.sqrt(found["all"] * (1 - found["all"]) / len(of_kind))
            parts = ", ".join(f"{name} {share:.0%}" for name, share in found.items() if name != "all")
            cells.append(f"**{found['all']:.0%}** ± {half:.0%} ({parts})")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    for run, pipeline in zip(given.runs, pipelines, strict=True):
        own = {k.removeprefix(f"{run}: "): v for k, v in figures.items() if k.startswith(f"{run}: ")}
        record = {"images_seen": pipeline.spec.images_seen, "count": given.count, "figures": own}
        (run / "graft.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
