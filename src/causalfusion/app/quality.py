"""Quality against time on the page: a few settings measured one after another, and the planner's picture of
them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from causalfusion.app.asked import Asked
from causalfusion.app.opened import Opened
from causalfusion.config import SampleConfig
from causalfusion.errors import UserError, check
from causalfusion.evaluate.quality import Judge, generate_batch, measure_quality, open_judge
from causalfusion.planner.candidate import prompts_for
from causalfusion.planner.picture import save_picture
from causalfusion.planner.sweep import Sweep, Tried, frontier, in_time

FEATURES = "pixels:8"
REFERENCE_IMAGES = 2000
LEAST_IMAGES, MOST_IMAGES = 16, 256
"""Images generated for each setting."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured so far."""

    tried: Sequence[Tried]
    planned: int
    """Number of settings in all."""
    now: str
    """The setting that is measured now, in the page's words; empty at the end."""


def sweep_around(opened: Opened, asked: Asked) -> list[Asked]:
    """The settings that the page tries: those asked for, and a few numbers of parts and refinement steps."""
    model, codec = opened.pipeline.model.config, opened.pipeline.codec
    asked = replace(asked, prompt="", class_name="", images=1)
    grid = Sweep(
        samplers=(opened.sampling.sampler,),
        diffusion_steps=(4, 8, 16),
        ar_steps=tuple(count for count in (1, 2, 4) if count <= codec.num_tokens),
        guidance_scales=(asked.guidance,),
    )
    found = [asked]
    for settings in grid.settings(opened.settings(asked), model, codec.num_tokens):
        if len(settings.diffusion_steps) == 1:  # equal numbers in every part, as the page has them
            found.append(
                replace(
                    asked,
                    ar_steps=settings.num_ar_steps or codec.num_tokens,
                    diffusion_steps=settings.diffusion_steps[0],
                )
            )
    return list(dict.fromkeys(found))


def open_page_judge(opened: Opened) -> Judge:
    """Raises UserError where no real images are known."""
    if opened.reference is None:
        raise UserError(
            "no real pictures are known to compare with; start the page with --reference, such as "
            f"causalfusion app {opened.name} --reference photos"
        )
    size = opened.pipeline.image_size
    return open_judge(FEATURES, opened.reference, size, opened.device, most=REFERENCE_IMAGES)


def measure(opened: Opened, judge: Judge, asked: Sequence[Asked], images: int) -> Iterator[Measured]:
    """What is known after each setting, with so many images of each. Raises UserError."""
    check(LEAST_IMAGES <= images <= MOST_IMAGES, "the number of pictures", images, f"{LEAST_IMAGES} to 256")
    assert opened.reference is not None, "there is a judge"
    pipeline, prompts = opened.pipeline, prompts_for(opened.pipeline, opened.reference, images)
    tried: list[Tried] = []
    plan = [opened.settings(each) for each in asked]
    words = [in_words(settings) for settings in plan]
    yield Measured(tried=(), planned=len(plan), now=words[0])
    # The first batch also warms up, which is no setting's time.
    generate_batch(
        pipeline, replace(plan[0], diffusion_steps=[1]), range(min(images, BATCH)), prompts=prompts
    )
    for place, settings in enumerate(plan):
        found = measure_quality(pipeline, settings, judge, images, prompts=prompts, batch_size=BATCH)
        tried.append(
            Tried(
                settings=settings,
                seconds_per_image=found.seconds_per_image,
                frechet=found.frechet,
                accuracy=found.accuracy,
            )
        )
        following = words[place + 1] if place + 1 < len(words) else ""
        yield Measured(tried=tuple(tried), planned=len(plan), now=following)


def in_words(settings: SampleConfig) -> str:
    """Parts and refinement steps in the page's words."""
    parts, steps = settings.num_ar_steps, settings.diffusion_steps[0]
    many = f"{steps} refinement step" + "s" * (steps > 1)
    return many if parts == 1 else f"{parts} parts of {many} each"


def best_within(tried: Sequence[Tried], seconds: float) -> Tried:
    """The best that takes at most so long for an image; the quickest where all take longer."""
    best = frontier(tried)
    return next((trial for trial in reversed(best) if trial.seconds_per_image <= seconds), best[0])


def chart(tried: Sequence[Tried], seconds: float) -> np.ndarray:
    """The planner's picture of what is measured, (H, W, 3) uint8, with a line at a time for an image."""
    from PIL import Image

    with tempfile.TemporaryDirectory(prefix="causalfusion-") as folder:
        path = Path(folder) / "plan.png"
        save_picture(path, tried, frontier(tried), seconds)
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))


def table(tried: Sequence[Tried]) -> list[list[str]]:
    """Rows of what is measured, quickest first: parts, refinement steps in each, time for an image, distance
    from real images, share that is as asked."""
    rows = []
    for trial in sorted(tried, key=lambda t: t.seconds_per_image):
        share = "" if trial.accuracy is None else f"{trial.accuracy:.0%}"
        s, distance = trial.settings, f"{trial.frechet:.3g}"
        mark = "best for its time" if trial in frontier(tried) else ""
        steps = ", ".join(map(str, s.diffusion_steps))
        rows.append([str(s.num_ar_steps), steps, in_time(trial.seconds_per_image), distance, share, mark])
    return rows


def as_asked(trial: Tried, asked: Asked) -> Asked:
    """A request with the settings of a trial."""
    return replace(
        asked, ar_steps=trial.settings.num_ar_steps, diffusion_steps=trial.settings.diffusion_steps[0]
    )
