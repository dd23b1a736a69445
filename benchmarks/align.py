"""Does alignment with a frozen encoder shorten training here? The comparison that docs/representation.md
settles.

`python -m benchmarks.align OUT CIFAR10 ENCODER JUDGE [SEEDS]` trains a small model of CIFAR-10 with and
without alignment on equally many images, draws samples from each, and prints the figures with the verdict.
CIFAR10: the folder of shards; ENCODER: as --align.encoder; JUDGE: as --features of `evaluate`. What is in
OUT is not made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.arms import in_words
from causalfusion.cli import run
from causalfusion.train.log import read_log

IMAGES, BATCH = 12_800, 32
"""Training images of each run, repeats counted, and of each step."""
SAMPLES = 500
ARMS = ("plain", "aligned")
LOSS = "held-out denoising loss"


def trained(out: Path, data: Path, encoder: str, arm: str, seed: int) -> Path:
    """The folder of a finished run."""
    folder = out / f"{arm}-{seed}"
    if not (folder / "done").is_file():
        line = (
            f"train --config cifar10 --model.hidden-size 64 --model.depth 4 --train.images {IMAGES} "
            f"--train.batch-size {BATCH} --train.warmup-images 1280 --train.precision float32 "
            f"--train.ema-decay 0.99 --train.evaluate-every {IMAGES // BATCH // 2} --train.sample-every 0 "
            f"--train.evaluate-images 1000 --train.checkpoint-every 100 --train.keep-checkpoints 1 "
            f"--train.seed {seed} --device cpu --out {folder}"
        ).split()
        line += ["--data.path", str(data / "cifar10-train-*.tar.gz")]
        if arm == "aligned":
            line += ["--align.encoder", encoder, "--align.width", "128"]
        _command(line)
        (folder / "done").touch()
    return folder


def judged(folder: Path, data: Path, judge: str) -> dict[str, float]:
    """Fréchet distances of samples to the test images, in the judge's features and in those of colours."""
    samples, card = folder.parent / f"samples-{folder.name}", folder.parent / f"card-{folder.name}"
    if not (card / "card.json").is_file():
        draw = f"sample --model {folder} --images {SAMPLES} --sampler dpm++ --diffusion-steps 15 --output npz"
        _command(f"{draw} --guidance-scale 2 --seed 0 --device cpu --out {samples}".split())
        line = ["evaluate", "--samples", str(samples / "samples.npz")]
        line += [
            "--reference",
            str(data / "cifar10-test-*.tar.gz"),
            "--features",
            judge,
            "pixels:8",
            "--measures",
            "frechet",
            "--device",
            "cpu",
        ]
        _command([*line, "--out", str(card)])
    return _figures(json.loads((card / "card.json").read_text()))


def _figures(card: Any) -> dict[str, float]:
    """The values of a card's figures by name."""
    return {name: figure["value"] for name, figure in card["figures"].items()}


def losses(folder: Path) -> list[tuple[int, float]]:
    """(images seen, held-out loss) of a run's evaluations."""
    records = read_log(folder / "log.jsonl")
    return [(r["images_seen"], r["mean"]) for r in records if r["kind"] == "evaluation"]


def seconds_of(folder: Path) -> float:
    """Training time, without evaluations."""
    (checkpoint,) = sorted((folder / "checkpoints").iterdir())[-1:]
    return json.loads((checkpoint / "state" / "progress.json").read_text())["seconds"]


def _command(line: list[str]) -> None:
    code = run(line)
    if code:
        raise SystemExit(code)


def main() -> None:
    out, data, encoder, judge = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    seeds = range(int(sys.argv[5]) if len(sys.argv) > 5 else 2)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for arm in ARMS:
            folder = trained(out, data, encoder, arm, seed)
            figures = {**judged(folder, data, judge)}
            for seen, loss in losses(folder):
                figures[f"{LOSS}, {seen} images"] = loss
            figures["seconds of training"] = seconds_of(folder)
            print(f"{arm}, seed {seed}: {json.dumps(figures)}", flush=True)
            for name, value in figures.items():
                found.setdefault(name, {}).setdefault(arm, []).append(value)
    for name, of_arms in found.items():
        gaps = [b - a for a, b in zip(of_arms["plain"], of_arms["aligned"], strict=True)]
        both = ", ".join(f"{arm} {mean(of_arms[arm]):.4g}" for arm in ARMS)
        print(f"{name}: {both}; aligned - plain {in_words(gaps)}")


if __name__ == "__main__":
    main()
