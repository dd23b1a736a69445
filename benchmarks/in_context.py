"""`python -m benchmarks.in_context`: does a model learn a rule from the examples before its query?

Trains the recipe `in-context` for each seed, or takes trained runs, and draws the answers to queries of the
split `test` (documents and made-up words that training never showed) after 0 to 4 examples, with the same
noise; the oracle judges them. Beside it the same with the examples of another document, of another rule.

    python -m benchmarks.in_context --minutes 60 --seeds 0 1          train and measure
    python -m benchmarks.in_context --task pairs --minutes 60         transformations only
    python -m benchmarks.in_context --run runs/in-context/both-0      measure a run
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from causalfusion.config import SampleConfig
from causalfusion.config.recipes import load_config, load_layers, merge
from causalfusion.config.settings import TaskName
from causalfusion.config.sizes import Fit
from causalfusion.data.in_context import KINDS, InContext
from causalfusion.evaluate.in_context import measure_in_context
from causalfusion.files import write_whole
from causalfusion.generate.output import save_png
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float
from causalfusion.machine.progress import ProgressLine
from causalfusion.pictures.compose import framed, sheet, to_tiles, with_texts
from causalfusion.saved.folder import latest_model
from causalfusion.train.run import train

SHOWN = 8
"""Documents of each task in the picture."""


def measured(run: Path, tasks: Sequence[TaskName], count: int, steps: int, examples: int) -> dict[str, Any]:
    """The figures of a run's last model by task, from its file if they are there, with a picture beside."""
    model = latest_model(run)
    file = run / f"in-context-{model.name}-{'-'.join(tasks)}-{count}.json"
    if file.exists():
        return json.loads(file.read_text())
    pipeline, sample = Pipeline.load(model), SampleConfig(sampler="dpm++", diffusion_steps=[steps])
    size = pipeline.codec.config
    figures: dict[str, Any] = {"model": str(model), "images_seen": pipeline.spec.images_seen, "count": count}
    for task in tasks:
        fit = Fit(size.image_height, size.image_width)
        data = InContext("test", task=task, examples=examples, fit=fit)
        figures[task] = {}
        for name, borrowed in (("own examples", False), ("of another rule", True)):
            line = ProgressLine((examples + 1) * count, 0)

            def show(done: int, line: ProgressLine = line, what: str = f"{task}, {name}") -> None:
                line.show(done, what)

            found, drawn = measure_in_context(pipeline, data, count, sample, borrowed=borrowed, progress=show)
            line.close()
            figures[task][name] = found
            if not borrowed:
                save_png(picture(data, drawn), run / f"in-context-{model.name}-{task}.png")
    write_whole(file, json.dumps(figures, indent=2) + "\n")
    return figures


def picture(data: InContext, drawn: list[np.ndarray]) -> np.ndarray:
    """A row for each of some documents: its examples, its query, the answers drawn after 0, 1, ... examples,
    and a right one."""
    images, texts = [], []
    for index in range(min(SHOWN, len(drawn[0]))):
        episode = data.episode(index)
        for number, shot in enumerate(episode.shots):
            last = number == data.examples
            if shot.given is not None:
                images.append(data.draw(shot.given))
                texts.append("query" if last else "")
            if not last:
                images.append(data.draw(shot.answer))
                texts.append(shot.caption)
        images += [of_number[index] for of_number in drawn] + [data.draw(episode.shots[-1].answer)]
        texts += [f"after {number}" for number in range(len(drawn))] + [episode.shots[-1].caption or "right"]
    tiles = with_texts(to_tiles(to_float(np.stack(images)), 3), texts)
    return np.asarray(framed(sheet(tiles, len(images) // min(SHOWN, len(drawn[0]))), 8))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Shares that are right, by number of examples, of each run (its name, its figures)."""
    lines = []
    for name, figures in rows.items():
        for task in (task for task in ("pairs", "words") if task in figures):
            numbers = list(figures[task]["own examples"])
            head = f"| {name}, {figures['images_seen']:,} documents: {task} |"
            lines += [head + "".join(f" {n} |" for n in numbers), "|---|" + "---|" * len(numbers)]
            for examples, found in figures[task].items():
                for what in ("right", "rule"):
                    shares = [f" {found[n][what]:.1%} |" for n in numbers]
                    lines.append(f"| {examples}: {what} |" + "".join(shares))
            for kind in KINDS[task]:
                found = figures[task]["own examples"]
                shares = [f" {found[n][f'{kind} right']:.1%} |" if f"{kind} right" in found[n] else " – |"
                          for n in numbers]  # fmt: skip
                lines.append(f"| {kind}: right |" + "".join(shares))
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.in_context", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--run", type=Path, action="append", default=[], help="measure this run: no training")
    parser.add_argument("--task", choices=get_args(TaskName), default="both")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", action="append", default=[], help="TOML laid over the recipe")
    parser.add_argument("--count", type=int, default=500, help="documents for each figure")
    parser.add_argument("--steps", type=int, default=20, help="diffusion steps")
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/in-context"))
    arguments = parser.parse_args()
    runs = list(arguments.run)
    if not runs:
        for seed in arguments.seeds:
            runs.append(arguments.out / f"{arguments.task}-{seed}")
            settings = {
                "out": str(runs[-1]),
                "data": {"task": arguments.task, "examples": arguments.examples},
                "train": {"seed": seed, "minutes": arguments.minutes},
            }
            layers = load_layers(arguments.config) if arguments.config else {}
            train(load_config("in-context", **merge([layers, settings])))
    tasks: list[TaskName] = ["pairs", "words"] if arguments.task == "both" else [arguments.task]
    rows = {
        run.name: measured(run, tasks, arguments.count, arguments.steps, arguments.examples) for run in runs
    }
    print(table(rows))


if __name__ == "__main__":
    main()
