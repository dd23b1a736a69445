"""The options of the command `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from causalfusion.config import SampleConfig
from causalfusion.config.options import (
    DEFAULT_MODEL,
    DrawingOptions,
    Model,
    Settings,
    require_at_least,
)
from causalfusion.config.sizes import parse_size
from causalfusion.errors import UserError
from causalfusion.planner.sweep import Measure, Sweep, read_time


@dataclass(frozen=True, kw_only=True)
class PlanRequest(DrawingOptions):
    model: Model = DEFAULT_MODEL
    also: Sequence[Path] = ()
    """Further models, such as students of few steps (causalfusion distill): each as its own sample.toml says,
    with every number of AR steps that is tried."""
    budget: str
    """Time per image on this machine, such as 200ms, 0.5s or 2min."""
    reference: str
    """Real images to compare with, as for evaluate: digits, shapes:test, a folder, shards, an .npz file."""
    features: str = "pixels:8"
    """The feature space of the Fréchet distance, as for evaluate."""
    images: int = 1000
    """Number of images generated for each setting."""
    size: str = ""
    """Size of the images in pixels, WIDTHxHEIGHT such as 320x192, or a number for a square; the reference is
    cropped and scaled to it. Default: the model's."""
    batch_size: int = 64
    """Images generated together; the time per image is that of a batch divided by this."""
    by: Measure = "frechet"
    """What is best: the lowest Fréchet distance, or the largest share of images that are of their class or,
    with captions of `shapes`, show what their caption says."""
    rounds: int = 0
    """After the grid, rounds of changes of one setting at a time around the best: solver and order, diffusion
    steps and their division among AR steps, guidance scale and interval, sizes of AR steps, shift of levels.
    The result is confirmed with other prompts and noise, beside the best of the grid."""
    save: bool = False
    """Make the best setting the model's own: what its images are made with unless the command line says
    otherwise (sample.toml in its folder; for a run, in its last checkpoint)."""
    out: Path = Path("plan")
    """Folder for plan.json, plan.md and plan.png."""
    sweep: Annotated[Sweep, Settings] = field(default_factory=Sweep)
    sample: Annotated[SampleConfig, Parameter(show=False)] = field(default_factory=SampleConfig)
    """Sampling settings that the sweep does not vary. Default: the model's own (sample.toml)."""

    def __post_init__(self) -> None:
        if self.sample.respacing:
            raise UserError(
                f"--sample.respacing is {self.sample.respacing}; the diffusion steps are what is tried: "
                "expected --diffusion-steps"
            )
        read_time(self.budget)  # raises for anything but a time
        if self.size:
            parse_size(self.size, "--size")
        require_at_least(2, self, "images")
        require_at_least(1, self, "batch_size")
        require_at_least(0, self, "rounds")

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds per image."""
        return read_time(self.budget)
