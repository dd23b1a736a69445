"""`python -m benchmarks.any_size MODEL ...`: images at several sizes, judged by the oracle of `shapes`.

For each model and size, the share of 100 images that show exactly the objects (shape and colour) of their
prompt, with one object and with two; on grids larger than that of training also by a rule for rotary
positions (`--rope-extrapolation`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.text_image import sampling
from causalfusion.config.sizes import Fit, parse_size
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.text_image import measure_text_to_image
from causalfusion.generate.pipeline import Pipeline

SIZES = ("32x32", "48x32", "32x48", "64x32", "32x64", "48x48", "64x64")
RULES = ("none", "linear", "ntk", "yarn")


def measure(pipeline: Pipeline, size: str, count: int) -> list[float]:
    """Shares of images with the objects of their prompt: for prompts of one object, and of two."""
    height, width = parse_size(size, "--sizes")
    shares = []
    for number in (1, 2):
        data = Shapes("test", fit=Fit(height, width), num_objects=number)
        figures, _ = measure_text_to_image(pipeline.at(height, width), data, count, sampling(1, 2.0))
        shares.append(figures["objects"])
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--rules", nargs="+", default=["none"], choices=RULES)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    print("| model | size | rule | one object | two objects |\n|---|---|---|---|---|")
    for model in given.models:
        pipeline = Pipeline.load(model)
        for rule in given.rules:
            pipeline.extrapolate(rule)
            for size in given.sizes:
                one, two = measure(pipeline, size, given.count)
                print(f"| {model} | {size} | {rule} | {one:.0%} | {two:.0%} |", flush=True)


if __name__ == "__main__":
    main()
