"""Do many AR steps make better features than one? The comparison that docs/representation.md settles.

`python -m benchmarks.representation OUT [SEEDS]` trains the recipe `digits` with both plans and both
predictions, probes each model, and prints the figures with the verdict. Models and figures in OUT are not
made again.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.cli import run
from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.data.loader import read_indices, split_holdout, to_float
from causalfusion.factorization import ar_step_of, places_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.transformer import Transformer
from causalfusion.probe.figures import Figure, KnownFigures, best_of
from causalfusion.probe.heads import Labelled, linear
from causalfusion.saved.folder import latest_model
from causalfusion.sequence import PackedSequence, class_segment, image_segment

PLANS, PREDICTIONS = ("decay", "fixed"), ("epsilon", "sample")
IMAGES = 32_000
"""Training images of each model, repeats counted."""
LEVELS = ("clean", "0.1", "0.3")


def trained(out: Path, plan: str, prediction: str, seed: int) -> Path:
    """The folder of a finished run."""
    folder = out / f"{plan}-{prediction}-{seed}"
    if not (folder / "done").is_file():
        _command(
            f"train --config digits --train.images {IMAGES} --train.evaluate-every 0 --train.seed {seed} "
            f"--diffusion.prediction-type {prediction} --factorization.distribution {plan} "
            f"--train.checkpoint-every 10000 --device cpu --out {folder}"
        )
        (folder / "done").touch()
    return folder


def probed(folder: Path) -> list[Figure]:
    """The figures of all layers and levels."""
    out = folder.parent / f"probe-{folder.name}"
    _command(f"probe {folder} --levels {' '.join(LEVELS)} --device cpu --out {out}")
    return list(KnownFigures.open(out, {}).found.values())


def supervised(folder: Path, seed: int) -> float:
    """Held-out accuracy of the same transformer, from scratch, trained end to end on as many labelled images,
    with the recipe's learning rate and schedule."""
    pipeline = Pipeline.load(latest_model(folder))
    (images, labels), (held, true) = _digits()
    torch.manual_seed(seed)
    model, head = Transformer(pipeline.model.config), nn.Linear(pipeline.model.config.hidden_size, 10)
    parameters = [*model.parameters(), *head.parameters()]
    steps, batch = IMAGES // 32, 32
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.15)

    def logits(pixels: Tensor) -> Tensor:
        tokens = pipeline.codec.encode_tokens(pixels, None)
        count, (_, width) = tokens.shape[1], pipeline.grid
        condition = class_segment(pipeline.null_labels(len(pixels)), model.config.num_condition_tokens)
        image = image_segment(
            "clean", tokens, ar_step_of([count])[None], places_of(torch.arange(count)[None], width)
        )
        sequence = PackedSequence((condition, replace(image, asks_next=True)))  # which has it read
        return head(model.hidden(sequence)[-1].mean(1))

    for _ in range(steps):
        rows = torch.randint(len(images), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(logits(images[rows]), labels[rows]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float((logits(held).argmax(1) == true).double().mean())


def pixels_alone() -> float:
    """Held-out accuracy of the linear probe on pixels."""
    (images, labels), (held, true) = _digits()
    known = Labelled(images.flatten(1).numpy(), labels.numpy())
    found = linear(known, held.flatten(1).numpy(), 10, 0, torch.device("cpu"))
    return float((found.predicted == true.numpy()).mean())


def _digits() -> list[tuple[Tensor, Tensor]]:
    """[(images, labels), (held-out images, labels)]."""
    data = DataConfig(source="digits")
    source, found = open_source(data), []
    for indices in split_holdout(len(source), 0.2):
        reads = read_indices(source, np.sort(indices), data)
        found.append((to_float(reads.pixels), torch.from_numpy(reads.labels)))
    return found


def _command(line: str) -> None:
    code = run(line.split())
    if code:
        raise SystemExit(code)


def main() -> None:
    out, seeds = Path(sys.argv[1]), range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    chosen: dict[tuple[str, str], list[Figure]] = {}
    every: dict[tuple[str, str], list[list[Figure]]] = {}
    for prediction, seed, plan in product(PREDICTIONS, seeds, PLANS):
        figures = probed(trained(out, plan, prediction, seed))
        chosen.setdefault((plan, prediction), []).append(best_of(figures, "linear"))
        every.setdefault((plan, prediction), []).append(figures)
    for (plan, prediction), figures in chosen.items():
        shares = ", ".join(f"{100 * f.accuracy:.1f} ({f.layer}, {f.level})" for f in figures)
        print(f"{plan:6} {prediction:8} mean {100 * mean(f.accuracy for f in figures):.2f}: {shares}")
    for prediction in PREDICTIONS:
        many, one = ([f.accuracy for f in chosen[plan, prediction]] for plan in PLANS)
        gaps = [100 * (a - b) for a, b in zip(many, one, strict=True)]
        error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        seen = (min(gaps) > 0 or max(gaps) < 0) and abs(mean(gaps)) > 2 * error
        words = "a difference" if seen else "no difference to be seen"
        print(f"{prediction}: many AR steps - one {mean(gaps):+.2f} ± {error:.2f} points: {words}; {gaps}")
    _table(every)
    folder = out / f"decay-epsilon-{seeds[0]}"
    shares = [100 * supervised(folder, seed) for seed in seeds]
    print(f"supervised from scratch: {mean(shares):.2f}: {[round(share, 1) for share in shares]}")
    print(f"linear on pixels: {100 * pixels_alone():.1f}")


def _table(every: dict[tuple[str, str], list[list[Figure]]]) -> None:
    """Print the mean accuracy over seeds, by layer and level."""
    print("\n| layer |" + "|".join(f" {p} {q}, {level} " for p, q in every for level in LEVELS) + "|")
    layers = {f.layer for runs in every.values() for figures in runs for f in figures}
    for layer in sorted(layers):
        cells = []
        for runs, level in product(every.values(), LEVELS):
            found = [f.accuracy for run in runs for f in run if (f.layer, f.level) == (layer, level)]
            cells.append(f" {100 * mean(found):.1f} ")
        print(f"| {layer} |" + "|".join(cells) + "|")


if __name__ == "__main__":
    main()
