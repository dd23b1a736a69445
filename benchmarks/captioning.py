"""Does a model that learned to draw learn to describe sooner than one from scratch? The comparison that
docs/representation.md settles.

    python -m benchmarks.captioning OUT [--seeds 0 1 2]

Small models of `shapes` learn to draw from captions and nothing else; then they, and the same architecture
with random weights, are trained to write captions, all else being equal. The oracle judges the captions of
500 held-out scenes, and of 300 scenes of one object. What is in OUT is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.arms import in_words, once, random_weights
from causalfusion.config import WriteConfig
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.text_image import measure_caption_truth
from causalfusion.generate.pipeline import Pipeline

DRAWN = 48_000
"""Images with which a model learns to draw."""
DESCRIBED = (6_400, 12_800)
"""Images of the trainings to describe."""
ONE_OBJECT = 300
RATE = "1.5e-3"
"""That of the recipe `shapes`. At that of `shapes-caption`, a third of it, so few images teach little."""
SMALL = "--model.hidden-size 96 --model.depth 6 --train.evaluate-every 0 --train.sample-every 0"
ARMS = ("learned to draw", "from scratch")


def drawing(out: Path, seed: int) -> Path:
    """A model that draws scenes of captions, and has never written one."""
    folder = out / f"draws-{seed}"
    once(
        folder / "seconds.json",
        f"train --config shapes {SMALL} --text.caption-first 1 --text.image-first 0 "
        f"--text.loss-coefficient 0 --train.images {DRAWN} --train.seed {seed} --device cpu --out {folder}",
    )
    return folder


def described(model: Path, out: Path, images: int, seed: int) -> dict[str, float]:
    """Figures of the captions of a model that is trained to write them."""
    line = f"finetune --model {model} --task caption --config shapes-caption --train.evaluate-every 0"
    once(
        out / "seconds.json",
        f"{line} --train.images {images} --train.warmup-images {images // 10} --train.lr {RATE} "
        f"--train.seed {seed} --device cpu --out {out}",
    )
    found = json.loads((out / "captions.json").read_text())["figures"]
    figures = {f"{name}, held-out scenes": found[name] for name in ("all", "colors", "sizes")}
    one = Shapes("test", num_objects=1)
    truth, _ = measure_caption_truth(Pipeline.load(out), one, ONE_OBJECT, WriteConfig())
    return figures | {f"{name}, one object": truth[name] for name in ("all", "colors", "shapes", "sizes")}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.captioning", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for seed in given.seeds:
        folder = drawing(given.out, seed)
        begins = dict(zip(ARMS, (folder, random_weights(folder, seed)), strict=True))
        for images in DESCRIBED:
            for arm in ARMS:
                out = given.out / f"{arm.replace(' ', '-')}-{images}-{seed}"
                figures = described(begins[arm], out, images, seed)
                print(f"{arm}, {images:,} images, seed {seed}: {json.dumps(figures)}", flush=True)
                found.setdefault((images, arm), []).append(figures)
    for images in DESCRIBED:
        drew, scratch = (found[images, arm] for arm in ARMS)
        for name in drew[0]:
            pairs = [(a[name], b[name]) for a, b in zip(drew, scratch, strict=True)]
            each = ", ".join(f"{a:.3f} against {b:.3f}" for a, b in pairs)
            print(f"{images:,} images, {name}: {each}; {in_words([a - b for a, b in pairs])}")


if __name__ == "__main__":
    main()
