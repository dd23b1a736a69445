"""Does a model that learned to draw learn to describe sooner than one from scratch? The comparison that
docs/representation.md settles.

    python -m benchmarks.captioning OUT [--seeds 0 1 2]

Small models of `shapes` learn to draw from captions and nothing else; then they, and the same architecture
with random weights, are trained to write captions, each at the learning rate of its recipe. The oracle judges
the captions of 500 held-out scenes. What is in OUT is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.arms import in_words, once, random_weights

DRAWN = 48_000
"""Images with which a model learns to draw."""
DESCRIBED = (3_200, 12_800)
"""Images of the trainings to describe."""
SMALL = "--model.hidden-size 96 --model.depth 6 --train.evaluate-every 0 --train.sample-every 0"
ARMS = {"learned to draw": "5e-4", "from scratch": "1.5e-3"}
"""Learning rates: of the recipe shapes-caption, and of the recipe shapes."""


def drawing(out: Path, seed: int) -> Path:
    """A model that draws scenes of captions, and has never written one."""
    folder = out / f"draws-{seed}"
    once(
        folder / "seconds.json",
        f"train --config shapes {SMALL} --text.caption-first 1 --text.image-first 0 "
        f"--text.loss-coefficient 0 --train.images {DRAWN} --train.seed {seed} --device cpu --out {folder}",
    )
    return folder


def described(model: Path, out: Path, images: int, rate: str, seed: int) -> dict[str, float]:
    """Figures of the captions of a model that is trained to write them."""
    line = f"finetune --model {model} --task caption --config shapes-caption --train.evaluate-every 0"
    once(
        out / "seconds.json",
        f"{line} --train.images {images} --train.warmup-images {images // 10} --train.lr {rate} "
        f"--train.seed {seed} --device cpu --out {out}",
    )
    return json.loads((out / "captions.json").read_text())["figures"]


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
        begins = {"learned to draw": folder, "from scratch": random_weights(folder, seed)}
        for images in DESCRIBED:
            for arm, rate in ARMS.items():
                out = given.out / f"{arm.replace(' ', '-')}-{images}-{seed}"
                figures = described(begins[arm], out, images, rate, seed)
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
