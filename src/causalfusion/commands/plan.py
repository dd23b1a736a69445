from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.config import SampleConfig, SamplerName

app = App(name="plan", result_action="return_value")


@app.default
def plan(
    model: Path,
    /,
    *,
    budget: str,
    reference: str,
    features: str = "pixels:8",
    images: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
    out: Path = Path("plan"),
    samplers: Annotated[list[SamplerName], Parameter(consume_multiple=True)] = ["ddim", "dpm++"],  # noqa: B006
    diffusion_steps: Annotated[list[int], Parameter(consume_multiple=True)] = [4, 8, 16, 32, 64],  # noqa: B006
    ar_steps: Annotated[list[int], Parameter(consume_multiple=True)] = [1, 2, 4],  # noqa: B006
    guidance_scales: Annotated[list[float], Parameter(consume_multiple=True)] = [1.0, 2.0],  # noqa: B006
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
) -> int:
    """Find out what quality costs: try samplers, diffusion steps, AR steps and guidance, draw quality against
    the time for each image, and name the best setting within a budget. The same command goes on where it
    was interrupted.

    Parameters
    ----------
    model
        A model folder, a training run (its last checkpoint), or the name of a packaged model.
    budget
        Time for each image, on this machine: 200ms, 0.5s, 2min.
    reference
        The real images to compare with, as for evaluate: digits, shapes:test, a folder, shards, an .npz file.
    features
        The feature space of the Fréchet distance, as for evaluate.
    images
        Images generated for each setting.
    batch_size
        Images generated together; the time for each image is its share of a batch.
    out
        Folder for plan.json, plan.md and plan.png.
    diffusion_steps
        Of all AR steps together.
    """
    from causalfusion.planner.run import Request
    from causalfusion.planner.run import plan as make_plan
    from causalfusion.planner.sweep import Sweep, in_time, read_time

    sweep = Sweep(
        samplers=samplers, diffusion_steps=diffusion_steps, ar_steps=ar_steps,
        guidance_scales=guidance_scales,
    )  # fmt: skip
    request = Request(
        model=model, budget=read_time(budget), reference=reference, features=features, images=images,
        batch_size=batch_size, seed=seed, out=out, sweep=sweep, base=SampleConfig(), precision=precision,
        device=device,
    )  # fmt: skip
    best = make_plan(request)
    quality = f"Fréchet distance {best.frechet:.4g}"
    print(f"{out / 'plan.png'}, {out / 'plan.md'}")
    print(f"best within {budget}: {best.in_words()}: {quality}, {in_time(best.seconds_per_image)} an image")
    print(f"  causalfusion sample --model {model} {best.as_options()}")
    return 0
