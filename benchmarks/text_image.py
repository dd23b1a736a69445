"""`python -m benchmarks.text_image`: text and images on `shapes`, judged by the oracles.

    evaluate MODEL      text→image, captions and edits of a trained model, by number of objects
    compare             CausalFusion against Transfusion: same data, size, steps and seeds
    coefficient         the coefficient of the text loss, by experiment
    ship RUN            train the recipes of the packaged model, each from the weights of the one before, the
                        last in that folder, unless that is done, and make the model the package's own:
                        float16, figures, card

All of them resume: what is trained or measured already is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.model_card import write_card
from causalfusion import cli
from causalfusion.config import SampleConfig, SplitName, WriteConfig
from causalfusion.config.recipes import load_config, load_layer, merge
from causalfusion.evaluate.text_image import (
    by_number_of_objects,
    measure_captions,
    measure_edits,
    measure_text_to_image,
)  # fmt: skip
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import ProgressLine
from causalfusion.saved.folder import checkpoints_of, latest_model, load_model, load_tokenizer, replace_model
from causalfusion.train.log import read_log
from causalfusion.train.run import train

METHODS = {"CausalFusion": "shapes", "Transfusion": "transfusion"}
CANDIDATES = 8
DRAWING = ("shapes", "shapes-finish", "shapes-fine")
"""Recipes of the packaged model, each from the averaged weights of the one before."""
MENDING = (
    ("shapes-relations", "shapes-both"),
    ("shapes-several", "shapes-last"),
    ("shapes-several", "shapes-last"),
    ("shapes-several", "shapes-last"),
)
"""Then, in turn: what the model does worst alone, and everything from half of the way there."""
TRAINED_HERE = (
    "The recipes `shapes`, `shapes-finish` and `shapes-fine`, each from the weights of the one before; from "
    "there `shapes-relations`, for captions alone, and from half of the way `shapes-both`; from there "
    "`shapes-several`, for images of several objects alone, and from half of the way `shapes-last`; and "
    "these two twice more."
)
PACKAGED = Path("src/causalfusion/models/shapes")


@dataclass(frozen=True)
class Settings:
    """The measurements, and their sample counts."""

    count: int
    ar_steps: Sequence[int]
    splits: Sequence[SplitName] = ("test", "compositional")
    guidance_scale: float = 2.0
    count_best_of_8: int = 100
    """At most so many scenes for the best of eight images."""


def sampling(num_ar_steps: int, guidance_scale: float) -> SampleConfig:
    """20 diffusion steps, or 10 in each of several AR steps."""
    steps = 20 if num_ar_steps == 1 else 10
    return SampleConfig(
        sampler="dpm++", diffusion_steps=[steps], num_ar_steps=num_ar_steps, guidance_scale=guidance_scale
    )


def evaluate(model: Path, settings: Settings) -> dict[str, Any]:
    """Figures by split and number of objects: text→image for each S, captions; edits on the test split."""
    pipeline = Pipeline.load(model)
    side = pipeline.codec.config.image_height
    figures: dict[str, Any] = {"model": str(model), "images_seen": pipeline.spec.images_seen}
    count_best = min(settings.count, settings.count_best_of_8)
    figures |= {"count": settings.count, "count_best_of_8": count_best}
    figures |= {"guidance_scale": settings.guidance_scale}
    for split in settings.splits:
        figures[split] = {}
        for name, data in by_number_of_objects(split, side):
            found: dict[str, Any] = {}
            for steps in settings.ar_steps:
                line = ProgressLine(settings.count, 0)
                found[f"text_to_image_S{steps}"], _ = measure_text_to_image(
                    pipeline, data, settings.count, sampling(steps, settings.guidance_scale),
                    progress=lambda done, line=line, name=name, s=steps: line.show(done, f"{name}, S = {s}"),
                )  # fmt: skip
                line.close()
            if split == "test":
                found["text_to_image_best_of_8"], _ = measure_text_to_image(
                    pipeline, data, count_best, sampling(1, settings.guidance_scale), candidates=CANDIDATES,
                )  # fmt: skip
            found["captions"], _ = measure_captions(pipeline, data, settings.count, WriteConfig())
            figures[split][name] = found
    _, data = next(by_number_of_objects("test", side))
    figures["edits"] = measure_edits(pipeline, data, settings.count, sampling(2, settings.guidance_scale))
    return figures


def train_recipe(recipe: str, run: Path, *layers: dict[str, Any]) -> None:
    """Train a recipe in this folder, or go on with it, with settings laid over it."""
    train(load_config(recipe, **merge([*layers, {"out": str(run)}])))


def measured(run: Path, settings: Settings) -> dict[str, Any]:
    """The figures of a run's last model, from its file if they are there."""
    model = latest_model(run)
    path = run / f"figures-{model.name}-{settings.count}.json"
    if path.exists():
        return json.loads(path.read_text())
    figures = evaluate(model, settings)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def compare(
    out: Path, images: int, seeds: Sequence[int], settings: Settings, overrides: dict[str, Any]
) -> str:
    """Train and measure both methods for every seed; a Markdown table, also in `out`/comparison.md."""
    rows = []
    for method, recipe in METHODS.items():
        for seed in seeds:
            run = out / f"{recipe}-{seed}"
            train_recipe(recipe, run, overrides, {"train": {"images": images, "seed": seed}})
            rows.append((method, seed, measured(run, settings)))
    table = comparison_table(rows)
    (out / "comparison.md").write_text(table)
    return table


def comparison_table(rows: Sequence[tuple[str, int, dict[str, Any]]]) -> str:
    """One row per method and seed: text→image at S = 1, captions, Fréchet distance and CIDEr-D by objects."""
    header = (
        "| method | seed | objects | text→image right | Fréchet (8×8 pixels) | captions true | CIDEr-D |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for method, seed, figures in rows:
        for name, found in figures["test"].items():
            image, caption = found["text_to_image_S1"], found["captions"]
            lines.append(
                f"| {method} | {seed} | {name} | {image['all']:.1%} | {image['frechet_pixels8']:.3f} "
                f"| {caption['all']:.1%} | {caption['CIDEr-D']:.2f} |\n"
            )
    return header + "".join(lines)


def coefficient(out: Path, images: int, values: Sequence[float], overrides: dict[str, Any]) -> str:
    """Short runs with each coefficient; the losses in the last quarter of each, of the same examples with the
    same draws. Not the averaged weights: in a short run they still hold the random ones."""
    lines = ["| coefficient | image loss | text loss | perplexity |\n|---|---|---|---|\n"]
    for value in values:
        run = out / f"coefficient-{value:g}"
        settings = {"text": {"loss_coefficient": value}, "train": {"images": images, "log_every": 10}}
        train_recipe("shapes", run, overrides, settings)
        records = [r for r in read_log(run / "log.jsonl") if r["kind"] == "train"]
        last = [r for r in records if r["images_seen"] > 0.75 * images]
        image, text = (sum(r[name] for r in last) / len(last) for name in ("image_loss", "text_loss"))
        lines.append(f"| {value:g} | {image:.4f} | {text:.4f} | {math.exp(text):.3f} |\n")
    table = "".join(lines)
    (out / "coefficient.md").write_text(table)
    return table


def train_all(run: Path, configs: Sequence[str], overrides: dict[str, Any]) -> None:
    """The stages of the packaged model, in folders beside `run`, which has the last."""

    def beside(name: str) -> str:
        return str(run.with_name(f"{run.name}-{name}"))

    def command(*line: str) -> None:
        if code := cli.run(line):
            raise SystemExit(code)

    before = ""
    for recipe in DRAWING:
        train_recipe(recipe, Path(beside(recipe)), overrides, {"train": {"init": before}})
        before = beside(recipe)
    for turn, (alone, together) in enumerate(MENDING, start=1):
        turned = beside(f"{turn}-{alone}")
        if "finetune" in load_layer(alone):
            layers = [word for config in (alone, *configs) for word in ("--config", config)]
            command("finetune", before, *layers, "--out", turned)
        else:
            train_recipe(alone, Path(turned), overrides, {"train": {"init": before}})
        half, last = beside(f"{turn}-half"), beside(f"{turn}-{together}")
        if turn == len(MENDING):
            last = str(run)
        if not checkpoints_of(Path(last)):
            command("merge", before, turned, "--out", half)
        train_recipe(together, Path(last), overrides, {"train": {"init": half}})
        before = last


def ship(
    run: Path,
    out: Path,
    settings: Settings,
    configs: Sequence[str],
    overrides: dict[str, Any],
    training: str,
) -> None:
    """The run's last model in float16 at `out`, measured as it is shipped, with a card."""
    if not checkpoints_of(run) or training == TRAINED_HERE:
        train_all(run, configs, overrides)
    folder = latest_model(run)
    model, spec = load_model(folder)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    own = sampling(1, settings.guidance_scale)
    replace_model(out, spec, weights, tokenizer=load_tokenizer(folder, spec), sampling=own)
    figures = evaluate(out, settings)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_card(out, spec, figures, training)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.text_image", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("evaluate", "compare", "coefficient", "ship"):
        command = commands.add_parser(name)
        count = 200 if name == "ship" else 500
        command.add_argument("--count", type=int, default=count, help="scenes for each figure")
        command.add_argument("--ar-steps", type=int, nargs="+", default=[1, 4])
        command.add_argument("--guidance-scale", type=float, default=3.0 if name == "ship" else 2.0)
        command.add_argument("--config", action="append", default=[], help="TOML laid over the recipe")
        if name in ("evaluate", "ship"):
            command.add_argument("model", type=Path)
        if name in ("compare", "coefficient"):
            command.add_argument("--images", type=int, default=200_000)
        command.add_argument("--out", type=Path, default=PACKAGED if name == "ship" else Path(f"runs/{name}"))
    commands.choices["compare"].add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    commands.choices["coefficient"].add_argument(
        "--values", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1]
    )
    commands.choices["ship"].add_argument(
        "--training", default=TRAINED_HERE, help="how it was trained, for the card, if not by this command"
    )
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    from causalfusion.config.recipes import load_layers

    settings = Settings(arguments.count, arguments.ar_steps, guidance_scale=arguments.guidance_scale)
    overrides = load_layers(arguments.config) if arguments.config else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.command == "evaluate":
        figures = evaluate(latest_model(arguments.model), settings)
        (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures, indent=2))
    elif arguments.command == "compare":
        test_only = Settings(settings.count, [1], ("test",), settings.guidance_scale)
        print(compare(arguments.out, arguments.images, arguments.seeds, test_only, overrides))
    elif arguments.command == "coefficient":
        print(coefficient(arguments.out, arguments.images, arguments.values, overrides))
    else:
        configs, training = arguments.config, arguments.training
        ship(arguments.model, arguments.out, settings, configs, overrides, training)


if __name__ == "__main__":
    main()
