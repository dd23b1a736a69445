"""What an evaluation was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.evaluate.figure import MeasureName
from causalfusion.saved import WeightsName

DEFAULT_IMAGES = 10_000
DEFAULT_MODEL = Path("shapes")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Either `model` generates the samples, or they are read from `samples`."""

    model: Path | None = None
    samples: str | None = None
    """A sample set, a folder of images, an .npz, or any other source."""
    reference: str | None = None
    """What to compare with: images, or a file of statistics."""
    features: Sequence[str] | None = None
    """Extractors' names; None: `digits` where the reference is digits, else `pixels:8`."""
    measures: Sequence[MeasureName] | None = None
    """None: all that are possible."""
    images: int | None = None
    """N. None: 10,000 generated ones, or all that there are to be read."""
    out: Path = Path("evaluation")
    classes: Sequence[str] = ()
    classes_file: Path | None = None
    prompts_file: Path | None = None
    candidates: int = 1
    batch_size: int = 64
    seed: int = 0
    weights: WeightsName = "ema"
    image_size: int = 0
    """Crop and scale samples that are read to this side; 0: as they are."""
    reference_images: int | None = None
    """Compare with so many images of the reference, drawn once and for all; None: with all."""
    cache: Path | None = None
    """Folder for the features of references; None: the user's cache."""
    num_workers: int = 0
    precision: str = "float32"
    device: str = "auto"
    preset: str | None = None
    """The named evaluation that these settings come from."""
    settings: SampleConfig = field(default_factory=SampleConfig)
    show_progress: bool = True

    def __post_init__(self) -> None:
        numbers = {
            "--images": self.images, "--batch-size": self.batch_size, "--candidates": self.candidates,
            "--reference-images": self.reference_images,
        }  # fmt: skip
        for flag, value in numbers.items():
            if value is not None and value < 1:
                raise UserError(f"{flag} is {value}; expected at least 1")
        for flag, value in (("--image-size", self.image_size), ("--num-workers", self.num_workers)):
            if value < 0:
                raise UserError(f"{flag} is {value}; expected 0 or more")
        if self.samples is not None:
            generating = {
                "--model": self.model, "--classes": self.classes, "--classes-file": self.classes_file,
                "--prompts-file": self.prompts_file,
            }  # fmt: skip
            given = [flag for flag, value in generating.items() if value]
            if given:
                raise UserError(f"--samples and {given[0]} are both given; expected one of them")
        elif self.image_size:
            raise UserError("--image-size is for samples that are read; a model's images have a size")
        if self.classes and self.classes_file is not None:
            raise UserError("--classes and --classes-file are both given; expected one of them")
        if self.candidates > 1 and self.prompts_file is None:
            raise UserError(f"--candidates is {self.candidates}; expected --prompts-file with it, or 1")
        for flag, values in (("--features", self.features), ("--measures", self.measures)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise UserError(f"{flag} is {list(values)}; expected one or more, each once")

    @property
    def extractors(self) -> Sequence[str]:
        return self.features or (["digits"] if self.reference == "digits" else ["pixels:8"])
