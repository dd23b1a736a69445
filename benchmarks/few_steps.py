"""`python -m benchmarks.few_steps MODEL`: what students of few diffusion steps keep of a model on `shapes`.

Distils the model for each K, unless that is done, and measures teacher and students in one process: prompts
of scenes with one and two objects that are drawn correctly, judged by the oracle, with 95 % intervals; images
a second, in turns, the quicker of two; captions that are true. Writes few_steps.json and few_steps.md. Other
options are those of `causalfusion distill`.

    python -m benchmarks.few_steps shapes --out runs/few-steps            # K = 1, 2, 4
    python -m benchmarks.few_steps shapes --steps 1 --images 16000 --count 100

Resumes: what is trained or measured already is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.cli import run as command
from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.evaluate.measures.intervals import share_interval
from causalfusion.evaluate.quality import generate_batch
from causalfusion.evaluate.text_image import (
    by_number_of_objects,
    measure_caption_truth,
    measure_text_to_image,
)
from causalfusion.files import sha256_of, write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import tell
from causalfusion.saved.folder import latest_model
from causalfusion.saved.sampling import read_sampling

KINDS = ("one object", "two objects")
TIMED = 100
"""Images of the batch that is timed."""


def distil(teacher: str, out: Path, steps: int, images: int, options: Sequence[str]) -> Path:
    """The student's folder. Raises SystemExit where the command fails."""
    run = out / f"{steps}-step"
    line = ["distill", teacher, "--steps", str(steps), "--train.images", str(images), "--out", str(run)]
    code = command([*line, *options])
    if code:
        raise SystemExit(code)
    return latest_model(run)


def sampling_of(folder: Path, num_ar_steps: int, diffusion_steps: int = 0) -> SampleConfig:
    """The model's own settings for so many AR steps."""
    own = read_sampling(folder) or SampleConfig()
    count = [diffusion_steps] if diffusion_steps else own.diffusion_steps
    return replace(own, num_ar_steps=num_ar_steps, diffusion_steps=count)


def measure(
    models: dict[str, tuple[Path, int]], ar_steps: Sequence[int], count: int, file: Path
) -> dict[str, Any]:
    """Figures by model, (folder, diffusion steps or 0 for its own) each; those in the file are not measured
    again."""
    figures = {}
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, (folder, steps) in models.items():
        key = f"{name}, {sha256_of(folder / 'model.safetensors')}, S {list(ar_steps)}, {count} scenes"
        if key not in known:
            tell(f"measuring {name}")
            known[key] = _figures(Pipeline.load(folder), folder, steps, ar_steps, count)
            write_whole(file, json.dumps(known, indent=1) + "\n")
        figures[name] = known[key]
    return figures


def _figures(
    pipeline: Pipeline, folder: Path, steps: int, ar_steps: Sequence[int], count: int
) -> dict[str, Any]:
    """{S: {kind: (share, low, high)}} of prompts drawn correctly, and captions that are true, by kind."""
    found: dict[str, Any] = {"captions": {}}
    data = dict(by_number_of_objects("test", pipeline.codec.config.image_height))
    for kind in KINDS:
        for number in ar_steps:
            sample = sampling_of(folder, number, steps)
            share = measure_text_to_image(pipeline, data[kind], count, sample)[0]["all"]
            found.setdefault(f"S{number}", {})[kind] = with_interval(share, count)
        if not steps:  # captions have no diffusion steps
            share = measure_caption_truth(pipeline, data[kind], count, WriteConfig())[0]["all"]
            found["captions"][kind] = with_interval(share, count)
    return found


def with_interval(share: float, count: int) -> tuple[float, float, float]:
    """(share, low, high) of `count` images."""
    low, high = share_interval(np.arange(count) < round(share * count))
    return share, low, high


def images_a_second(models: dict[str, tuple[Path, int]], ar_steps: Sequence[int]) -> dict[str, Any]:
    """{model: {S: images a second}}: the quicker of two rounds in which all take their turn."""
    pipelines = {name: Pipeline.load(folder) for name, (folder, _) in models.items()}
    best: dict[str, dict[str, float]] = {name: {} for name in models}
    for _ in range(2):
        for number in ar_steps:
            for name, (folder, steps) in models.items():
                sample, pipeline = sampling_of(folder, number, steps), pipelines[name]
                prompts = None if pipeline.tokenizer is None else ["a small red circle"]
                taken = generate_batch(pipeline, sample, range(TIMED), prompts=prompts).seconds
                best[name][f"S{number}"] = max(best[name].get(f"S{number}", 0.0), TIMED / taken)
    return best


def table(figures: dict[str, Any], speed: dict[str, Any], ar_steps: Sequence[int]) -> str:
    lines = ["| model | AR steps | one object | two objects | images/s |\n|---|---|---|---|---|\n"]
    for name, found in figures.items():
        for number in ar_steps:
            shares = " | ".join(in_words(found[f"S{number}"][kind]) for kind in KINDS)
            lines.append(f"| {name} | {number} | {shares} | {speed[name][f'S{number}']:.0f} |\n")
    lines.append("\n| captions that are true | one object | two objects |\n|---|---|---|\n")
    for name, found in figures.items():
        if found["captions"]:
            shares = " | ".join(in_words(found["captions"][kind]) for kind in KINDS)
            lines.append(f"| {name} | {shares} |\n")
    return "".join(lines)


def in_words(measured: Sequence[float]) -> str:
    share, low, high = measured
    return f"{share:.1%} ({low:.0%} to {high:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_steps", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="the teacher: a run, a model folder or a packaged model")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="K of each student")
    parser.add_argument("--images", type=int, default=64_000, help="images of each distillation")
    parser.add_argument("--ar-steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--count", type=int, default=200, help="scenes for each figure")
    parser.add_argument("--out", type=Path, default=Path("runs/few-steps"))
    arguments, options = parser.parse_known_args()
    if "--data.source" not in options:
        options += ["--data.source", "shapes"]
    teacher = latest_model(Path(arguments.model))
    models = {"teacher": (teacher, 0)} | {
        f"teacher, {k} step{'s' * (k > 1)}": (teacher, k) for k in arguments.steps
    }
    for k in arguments.steps:
        student = distil(arguments.model, arguments.out, k, arguments.images, options)
        models[f"student, K = {k}"] = (student, 0)
    file = arguments.out / "few_steps.json"
    figures = measure(models, arguments.ar_steps, arguments.count, file)
    text = table(figures, images_a_second(models, arguments.ar_steps), arguments.ar_steps)
    write_whole(arguments.out / "few_steps.md", text)
    print(text)


if __name__ == "__main__":
    main()
