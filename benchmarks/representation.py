"""What do models learn about images as they learn to draw them? The comparison that docs/representation.md
settles: CausalFusion, the same with one AR step alone, and DiT (one AR step, AdaLN), each predicting noise
and x_0, trained on equally many images.

    python -m benchmarks.representation OUT                         # digits, three seeds
    python -m benchmarks.representation OUT --data cifar10 --seeds 0

Each model draws samples (Fréchet distance), is probed by layer and noise level, and is fine-tuned to tell
classes; beside them stand the same architectures fine-tuned from random weights, which saw labels alone.
Writes figures.json, figures.md and layers.png to OUT; what is in OUT is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from benchmarks.arms import in_words, once, random_weights
from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.data.loader import read_indices, split_holdout, to_float
from causalfusion.files import write_whole
from causalfusion.generate.classifier import Classifier
from causalfusion.pictures.charts import axes_of
from causalfusion.probe.figures import Figure, KnownFigures, best_of
from causalfusion.probe.heads import Labelled, linear

MANY, ONE, DIT = "CausalFusion", "one AR step", "DiT"
ARMS = {
    MANY: "",
    ONE: "--factorization.distribution fixed --factorization.num-ar-steps 1",
    DIT: "--factorization.distribution fixed --factorization.num-ar-steps 1 "
    "--model.conditioning adaln_zero --model.num-class-tokens 0",
}
PREDICTIONS = {"ε": "epsilon", "x_0": "sample"}
SUPERVISED = "labels alone"
PAIRS = ((MANY, ONE), (ONE, DIT), (MANY, DIT))
COLORS = {MANY: "#2f6db5", ONE: "#c2504f", DIT: "#5b6670"}
QUALITY, PROBE, TUNED = "Fréchet distance", "linear probe, %", "fine-tuned, %"


@dataclass(frozen=True)
class Setting:
    """Options of each command, for a data set."""

    train: str
    draw: str
    probe: str
    finetune: str
    test: str
    """Held-out images of the fine-tuned accuracy; empty: those that the data set's recipe holds out."""


def settings(data: str, shared: Path) -> Setting:
    """The setting of a data set, which is `digits` or `cifar10`."""
    if data == "digits":
        return Setting(
            train="--config digits --train.images 32000 --train.checkpoint-every 10000",
            draw="--reference digits --features digits --images 1000 --diffusion-steps 25",
            probe="--levels clean 0.1 0.3",
            finetune="--config digits-classify --train.checkpoint-every 10000",
            test="",
        )
    shards, test = (str(shared / f"data/cifar10/cifar10-{part}-*.tar.gz") for part in ("train", "test"))
    judge = shared / "eval" / "resnet56_cifar10.safetensors"
    small = "--train.batch-size 32 --train.ema-decay 0.99 --train.checkpoint-every 200"
    return Setting(
        train=f"--config cifar10 --data.path {shards} --model.hidden-size 96 --train.images 12800 {small} "
        "--train.warmup-images 1280 --train.sample-every 0",
        draw=f"--reference {test} --features resnet-cifar-jpeg:{judge} --images 500 --diffusion-steps 15",
        probe=f"--levels clean --images 5000 --test {test}",
        finetune=f"--config cifar10-classify --data.path {shards} --train.images 12800 {small} "
        "--train.warmup-images 1280",
        test=test,
    )


# --- one model ------------------------------------------------------------------------------------------


def trained(folder: Path, arm: str, prediction: str, seed: int, setting: Setting) -> float:
    """Train, unless that is done. CPU seconds of it."""
    options = f"{setting.train} {ARMS[arm]} --diffusion.prediction-type {PREDICTIONS[prediction]}"
    return once(
        folder / "seconds.json",
        f"train {options} --train.evaluate-every 0 --train.seed {seed} --device cpu --out {folder}",
    )


def drawn(folder: Path, setting: Setting) -> float:
    """Fréchet distance of samples of one AR step without guidance."""
    card = folder / "evaluation" / "card.json"
    once(
        folder / "evaluated.json",
        f"evaluate --model {folder} {setting.draw} --measures frechet --num-ar-steps 1 --sampler dpm++ "
        f"--guidance-scale 1 --device cpu --out {card.parent}",
    )
    (figure,) = json.loads(card.read_text())["figures"].values()
    return figure["value"]


def probed(folder: Path, setting: Setting) -> list[Figure]:
    """The figures of all layers and levels."""
    out = folder / "probe"
    once(folder / "probed.json", f"probe --model {folder} {setting.probe} --device cpu --out {out}")
    return list(KnownFigures.open(out, {}).found.values())


def tuned(folder: Path, out: Path, setting: Setting, seed: int, options: str = "") -> float:
    """Held-out accuracy, in percent, of a model that is fine-tuned to tell classes."""
    line = f"finetune --model {folder} --task classify {setting.finetune} {options} --train.evaluate-every 0"
    once(out / "seconds.json", f"{line} --train.seed {seed} --device cpu --out {out}")
    file = out / "accuracy.json"
    if not file.exists():
        write_whole(file, json.dumps(accuracy(Classifier.load(out), *held_out(setting))))
    return json.loads(file.read_text())


def held_out(setting: Setting) -> tuple[torch.Tensor, np.ndarray]:
    """Images in [-1, 1] and labels that no model saw."""
    if not setting.test:
        return digits()[1]
    data = DataConfig(source="webdataset", path=setting.test)
    source = open_source(data)
    reads = read_indices(source, np.arange(len(source)), data)
    return to_float(reads.pixels), reads.labels


def digits() -> list[tuple[torch.Tensor, np.ndarray]]:
    """[(images, labels), (held-out images, labels)]."""
    data = DataConfig(source="digits")
    source = open_source(data)
    parts = [read_indices(source, np.sort(i), data) for i in split_holdout(len(source), 0.2)]
    return [(to_float(reads.pixels), reads.labels) for reads in parts]


def accuracy(classifier: Classifier, images: torch.Tensor, labels: np.ndarray) -> float:
    """Percent of images whose class is right. Both number the classes by their sorted names."""
    found = [classifier.probabilities(part).argmax(1) for part in images.split(500)]
    return 100 * float((torch.cat(found).numpy() == labels).mean())


# --- all of them ----------------------------------------------------------------------------------------

Figures = dict[str, dict[str, list[float]]]
"""Measure -> model -> a figure for each seed."""
Layers = dict[str, list[list[Figure]]]
"""Model -> the figures of its probes for each seed."""


def measured(
    out: Path, setting: Setting, seeds: Sequence[int]
) -> Iterator[tuple[str, str, float | list[Figure]]]:
    """(measure, model, figure) of every model; the figures of its probes are named layers."""
    for seed in seeds:
        for prediction in PREDICTIONS:
            for arm in ARMS:
                name, folder = f"{arm}, {prediction}", out / f"{arm}-{prediction}-{seed}".replace(" ", "-")
                yield "CPU seconds of training", name, trained(folder, arm, prediction, seed, setting)
                yield QUALITY, name, drawn(folder, setting)
                figures = probed(folder, setting)
                yield "layers", name, figures
                yield PROBE, name, 100 * best_of(figures, "linear").accuracy
                yield TUNED, name, tuned(folder, folder / "classify", setting, seed)
        for arm in (MANY, DIT):
            folder = out / f"{arm}-{next(iter(PREDICTIONS))}-{seed}".replace(" ", "-")
            begin, classify = random_weights(folder, seed), folder / "classify-random"
            share = tuned(begin, classify, setting, seed, "--layer-decay 1")
            yield TUNED, f"{SUPERVISED}, as {arm}", share


def table(figures: Figures) -> Iterator[str]:
    """A row for each model: the mean over seeds, and the spread."""
    models = list(dict.fromkeys(model for of in figures.values() for model in of))
    yield f"| | {' | '.join(figures)} |"
    yield "|---" * (len(figures) + 1) + "|"
    for model in models:
        cells = []
        for of_models in figures.values():
            values = of_models.get(model, [])
            spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4g}{spread}" if values else "")
        yield f"| {model} | {' | '.join(cells)} |"


def comparisons(figures: Figures) -> Iterator[str]:
    """Each difference that was to be looked at, with the verdict."""
    for measure in (QUALITY, PROBE, TUNED):
        of = figures[measure]
        pairs = [(f"{a}, {p}", f"{b}, {p}") for a, b in PAIRS for p in PREDICTIONS]
        pairs += [(f"{arm}, x_0", f"{arm}, ε") for arm in ARMS]
        for a, b in pairs:
            gaps = [x - y for x, y in zip(of[a], of[b], strict=True)]
            yield f"- {measure}: {a} - {b}: {in_words(gaps)}"


def layer_table(layers: Layers) -> Iterator[str]:
    """The mean accuracy over seeds, by layer and level."""
    every = [figure for runs in layers.values() for run in runs for figure in run]
    levels, numbers = list(dict.fromkeys(f.level for f in every)), sorted({f.layer for f in every})
    yield f"| model, level | {' | '.join(f'layer {n}' for n in numbers)} |"
    yield "|---" * (len(numbers) + 1) + "|"
    for model, runs in layers.items():
        for level in levels:
            cells = [f"{mean(shares(runs, n, level)):.1f}" for n in numbers]
            yield f"| {model}, {level} | {' | '.join(cells)} |"


def shares(runs: Sequence[Sequence[Figure]], layer: int, level: str) -> list[float]:
    return [100 * f.accuracy for run in runs for f in run if (f.layer, f.level) == (layer, level)]


def picture(file: Path, layers: Layers) -> None:
    """Accuracy on clean images over layers, from the first block on: a plot for each prediction, a line for
    each arm, and the range of its seeds."""
    every = [figure for runs in layers.values() for run in runs for figure in run]
    numbers = sorted({figure.layer for figure in every} - {0})
    with axes_of(file, len(PREDICTIONS), (4.4 * len(PREDICTIONS) + 0.4, 3.8)) as plots:
        for prediction, axes in zip(PREDICTIONS, plots, strict=True):
            for arm, color in COLORS.items():
                of_layers = [shares(layers[f"{arm}, {prediction}"], n, "clean") for n in numbers]
                axes.plot(numbers, [mean(values) for values in of_layers], "o-", color=color, label=arm)
                low, high = [min(values) for values in of_layers], [max(values) for values in of_layers]
                axes.fill_between(numbers, low, high, color=color, alpha=0.15, linewidth=0)
            axes.set_title(f"predicting {prediction}")
            axes.set_xticks(numbers)
            axes.set_xlabel("layer")
            axes.set_ylabel("linear probe, held-out accuracy, %")
            axes.legend(frameon=False, fontsize=8)
        limits = [limit for axes in plots for limit in axes.get_ylim()]
        for axes in plots:
            axes.set_ylim(min(limits), max(limits))


def pixels_alone() -> float:
    """Held-out accuracy, in percent, of the linear probe on the pixels of digits."""
    (images, labels), (held, true) = digits()
    known = Labelled(images.flatten(1).numpy(), labels)
    found = linear(known, held.flatten(1).numpy(), 10, 0, torch.device("cpu"))
    return 100 * float((found.predicted == true).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.representation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and eval/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures, layers = Figures(), Layers()
    for measure, model, found in measured(given.out, settings(given.data, given.shared), given.seeds):
        if isinstance(found, list):
            layers.setdefault(model, []).append(found)
        else:
            figures.setdefault(measure, {}).setdefault(model, []).append(found)
    lines = [*table(figures), ""]
    lines += [*comparisons(figures), "", *layer_table(layers)]
    if given.data == "digits":
        lines += ["", f"linear probe on pixels: {pixels_alone():.1f} %"]
    write_whole(given.out / "figures.json", json.dumps(figures, indent=1) + "\n")
    write_whole(given.out / "figures.md", "\n".join(lines) + "\n")
    picture(given.out / "layers.png", layers)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
