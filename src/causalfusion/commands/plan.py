from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.commands.common import Autoencoder, Device, Model, Precision, SamplingFiles, Seed, Settings
from causalfusion.config import SampleConfig
from causalfusion.planner.sweep import Sweep

app = App(name="plan", result_action="return_value")


@app.default
def plan(
    *,
    model: Model = Path("shapes"),
    budget: str,
    reference: str,
    features: str = "pixels:8",
    images: int = 1000,
    batch_size: int = 64,
    seed: Seed = 0,
    out: Path = Path("plan"),
    sweep: Annotated[Sweep, Settings] = Sweep(),  # noqa: B008
    precision: Precision = "float32",
    autoencoder: Autoencoder = "",
    device: Device = "auto",
    config: SamplingFiles = [],  # noqa: B006
    sample: Annotated[SampleConfig, Parameter(show=False, consume_multiple=True)] = SampleConfig(),  # noqa: B008
) -> int:
    """Find the best sampling settings within a time budget.

    Samplers, diffusion steps, AR steps and guidance are tried, and quality is drawn against the time for each
    image. The same command goes on where it was interrupted.

    Parameters
    ----------
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
    """
    from causalfusion.planner.run import Request
    from causalfusion.planner.run import plan as make_plan
    from causalfusion.planner.sweep import in_time, read_time

    request = Request(
        model=model, budget=read_time(budget), reference=reference, features=features, images=images,
        batch_size=batch_size, seed=seed, out=out, sweep=sweep, base=sample, precision=precision,
        device=device, autoencoder=autoencoder,
    )  # fmt: skip
    best = make_plan(request)
    quality = f"Fréchet distance {best.frechet:.4g}"
    print(f"{out / 'plan.png'}, {out / 'plan.md'}")
    print(f"best within {budget}: {best.in_words()}: {quality}, {in_time(best.seconds_per_image)} an image")
    print(f"  causalfusion sample --model {model} {best.as_options()}")
    return 0
