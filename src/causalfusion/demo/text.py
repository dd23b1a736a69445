"""The demo's part on text and images: prompts, captions and edits with the packaged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.measures.scenes import caption_truth
from causalfusion.evaluate.text_image import (
    edit_task,
    measure_caption_truth,
    measure_text_to_image,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float
from causalfusion.show.text import captions_picture, edits_picture, prompts_picture

MODEL = "shapes"
SAMPLE = SampleConfig(sampler="dpm++", diffusion_steps=[20], guidance_scale=3.0)
PROMPTS = (
    "a large red star",
    "a small blue circle in the top left",
    "a big green triangle at the bottom",
    "a small orange diamond",
    "a small red circle to the left of a large blue square",
    "a large yellow star above a small black diamond",
    "a big purple triangle under a tiny cyan star",
    "a large orange square, and a small green circle to the right of the square",
)
CANDIDATES = 8
_SHOWN_CAPTIONS, _SHOWN_EDITS = 16, 8


def draw_text_images(out: Path, *, count: int) -> dict[str, Any]:
    """Draw prompts.png, captions.png and text-edits.png into `out`; figures over `count` scenes with one
    object of the kinds in training, and over as many whose pair of shape and colour is not in training."""
    pipeline = Pipeline.load(MODEL)
    side = pipeline.codec.config.image_height
    prompts_picture(pipeline, PROMPTS, SAMPLE, (1, 4), CANDIDATES).save(out / "prompts.png")
    unseen = Shapes("test", side=side)
    images = to_float(np.stack([unseen.read(index).image for index in range(_SHOWN_CAPTIONS)]))
    picture, captions = captions_picture(pipeline, images, WriteConfig())
    picture.save(out / "captions.png")
    originals, prompts = zip(*(edit_task(unseen, index) for index in range(_SHOWN_EDITS)), strict=True)
    regions = ["right"] * _SHOWN_EDITS
    edits = edits_picture(pipeline, to_float(np.stack(originals)), prompts, regions, SAMPLE)
    edits.save(out / "text-edits.png")
    shown = caption_truth(captions, [unseen.scene(index) for index in range(_SHOWN_CAPTIONS)])
    return {
        **_measure(pipeline, Shapes("test", side=side, num_objects=1), count, ""),
        **_measure(pipeline, Shapes("compositional", side=side, num_objects=1), count, "_new_pairs"),
        "shown_caption_truth": shown["all"],
        "text_scenes": count,
    }


def _measure(pipeline: Pipeline, scenes: Shapes, count: int, suffix: str) -> dict[str, float]:
    """Fractions of images that show what their prompt says, and of captions that are true of their image."""
    drawn, _ = measure_text_to_image(pipeline, scenes, count, SAMPLE)
    said, _ = measure_caption_truth(pipeline, scenes, count, WriteConfig())
    return {f"text_to_image{suffix}": drawn["all"], f"caption_truth{suffix}": said["all"]}
