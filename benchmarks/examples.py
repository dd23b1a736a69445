"""`python -m benchmarks.examples`: how often the README's examples with the model that ships come out right.

For `sample --prompt`, `edit --region right --prompt`, `complete TEXT` and `complete IMAGE`, over scenes that
the model has not seen, judged by the oracle of `shapes`; and for the commands themselves at seed 0.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion import cli
from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.config.recipes import load_layer
from causalfusion.data.picture import decode_image
from causalfusion.data.scene_captions import parse_caption
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.measures.scenes import matches, read_scene
from causalfusion.evaluate.text_image import measure_edits, measure_text_to_image
from causalfusion.generate.complete import complete
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float
from causalfusion.saved.folder import latest_model

SAMPLE, EDIT = "a large red star", "a small red circle to the left of a big green square"
TWO = "a big blue circle above a small red star"
STORY = "a large yellow star"
SCENES = {1: "one object", 2: "two objects"}


def is_true(text: str, pixels: np.ndarray) -> bool:
    """True if a text says exactly what an image (H, W, 3) uint8 shows."""
    description = parse_caption(text)
    return description is not None and matches(description, read_scene(pixels)).all


def rates(count: int, candidates: int) -> dict[str, Any]:
    """Shares that are right of `count` scenes, with one draw and with the best of `candidates`."""
    pipeline, found = Pipeline.load("shapes"), {}
    settings = SampleConfig(**load_layer(str(latest_model(Path("shapes")) / "sample.toml")))
    for number, name in SCENES.items():
        data = Shapes("test", side=pipeline.codec.config.image_height, num_objects=number)
        for drawn in (1, candidates):
            of = f"{name}, best of {drawn}"
            made, _ = measure_text_to_image(pipeline, data, count, settings, candidates=drawn)
            found[f"sample, {of}"] = made["all"]
            if number == 1:
                found[f"edit, {of}"] = measure_edits(pipeline, data, count, settings, candidates=drawn)["all"]
                found[f"complete TEXT, {of}"] = _completed_texts(pipeline, data, count, settings, drawn)
        found[f"complete IMAGE, {name}"] = _completed_images(pipeline, data, count, settings)
    return found


def _completed_texts(
    pipeline: Pipeline, data: Shapes, count: int, settings: SampleConfig, candidates: int
) -> float:
    """The share of captions after which the model draws one image, as they say, and ends."""
    right = 0
    for index in range(count):
        text = data.captions(index)[0]
        made = complete(pipeline, [text], settings, seed=index, candidates=candidates)
        if len(made) == 1 and not isinstance(made[0], str):
            right += is_true(text, pipeline.codec.to_uint8(made[0][None])[0])
    return right / count


def _completed_images(pipeline: Pipeline, data: Shapes, count: int, settings: SampleConfig) -> float:
    """The share of images after which the model writes one text that is true of them, and ends."""
    right = 0
    for index in range(count):
        pixels = data.read(index).image
        made = complete(pipeline, [to_float(pixels[None])[0]], settings, WriteConfig(), seed=index)
        right += len(made) == 1 and isinstance(made[0], str) and is_true(made[0], pixels)
    return right / count


def commands(candidates: int) -> dict[str, list[bool]]:
    """The commands of the README at seed 0: for each of their images, whether it shows what was asked for."""
    drawn, found = ["--candidates", str(candidates)], {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name, prompt, more in (
            ("sample", SAMPLE, []),
            ("sample, best", SAMPLE, drawn),
            ("two", TWO, drawn),
        ):
            _run("sample", "--prompt", prompt, "--images", "8", "--out", out / name, *more)
            found[f"{name}: {prompt}"] = _judged(out / name, "0*.png", prompt)
        scene = "a small red circle to the left of a large blue star"
        _run("sample", "--prompt", scene, "--images", "1", *drawn, "--out", out / "scene")
        _run("edit", out / "scene" / "000000.png", "--region", "right", "--prompt", EDIT, *drawn,
             "--variants", "4", "--out", out / "edit")  # fmt: skip
        found[f"edit: {scene} -> {EDIT}"] = _judged(out / "edit", "edited-*.png", EDIT)
        _run("complete", STORY, *drawn, "--out", out / "story")
        found[f"complete: {STORY}"] = _judged(out / "story", "completion-*.png", STORY)
    return found


def _run(*tokens: object) -> None:
    if cli.run([str(token) for token in tokens]):
        raise SystemExit(f"{tokens[0]} failed")


def _judged(folder: Path, pattern: str, text: str) -> list[bool]:
    files = sorted(folder.glob(pattern))
    return [is_true(text, decode_image(file.read_bytes(), file.name)) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.examples", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=100, help="scenes for each share")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--commands-only", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(commands(arguments.candidates), indent=2))
    if not arguments.commands_only:
        print(json.dumps(rates(arguments.count, arguments.candidates), indent=2))


if __name__ == "__main__":
    main()
