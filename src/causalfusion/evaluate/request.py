"""What an evaluation was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.figure import MeasureName

DEFAULT_IMAGES = 10_000
DEFAULT_MODEL = Path("shapes")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Either `model` generates the samples, or they are read from `samples`. The options of the command."""

    model: Path | None = None
    """A model folder, a training run (its last checkpoint), or the name of a packaged model (the default:
    shapes)."""
    samples: str | None = None
    """Measure these images instead: a sample set, the folder of `sample`, a folder of images, an .npz (images
    in arr_0, labels in arr_1)."""
    reference: str | None = None
    """What to compare with: digits, shapes[:SPLIT], a folder of images, shards ('*.tar'), .jsonl, an .npz of
    images, or an .npz of statistics (mu, sigma). Its features are kept in the cache."""
    features: Sequence[str] | None = None
    """One or several of: pixels[:SIDE], digits, resnet-cifar[-jpeg]:PATH, inception[:PATH], transformers:ID,
    module:attribute. Default: digits where the reference is digits, else pixels:8."""
    measures: Sequence[MeasureName] | None = None
    """Default: all that the reference and the features allow."""
    images: int | None = None
    """N. Default: 10,000 generated ones, or all that there are to be read."""
    out: Path = Path("evaluation")
    """Folder for `card.json`, `grid.png` and the samples."""
    preset: str | None = None
    """A named evaluation, beneath the other options: paper-ablation, paper-system, paper-text. A model's own
    settings then do not count."""
    classes: Sequence[str] = ()
    """By number or name; image i gets classes[i % how many]. Default: balanced, all in turn."""
    classes_file: Path | None = None
    """UTF-8 file with a class on each line, instead."""
    prompts_file: Path | None = None
    """UTF-8 file with a prompt on each line; image i gets prompt i % how many."""
    candidates: int = 1
    """Images drawn for each prompt: the one is kept for which the model itself finds it likeliest."""
    batch_size: int = 64
    """Images generated, or taken to features, together."""
    seed: int = 0
    """Image i depends on the seed and i alone."""
    weights: Literal["ema", "raw"] = "ema"
    """ema: the average of the weights over training; raw: those of the last step."""
    autoencoder: str = ""
    """Where the model's autoencoder lies now, if neither in its folder nor where it was in training."""
    image_size: int = 0
    """Crop and scale images that are read (--samples) to this side; 0: as they are."""
    reference_images: int | None = None
    """Compare with so many images of the reference, drawn once and for all. Default: all."""
    cache: Path | None = None
    """Folder for the features of references. Default: ~/.cache/causalfusion (XDG_CACHE_HOME)."""
    num_workers: int = 0
    """Processes that read images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:N, mps or xpu."""
    show_progress: bool = True
    """Print how far the work is."""
    settings: Annotated[SampleConfig, Parameter(name="*")] = field(default_factory=SampleConfig)

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
                "--prompts-file": self.prompts_file, "--autoencoder": self.autoencoder,
            }  # fmt: skip
            given = [flag for flag, value in generating.items() if value]
            if given:
                raise UserError(f"--samples and {given[0]} are both given; expected one of them")
            self._refuse_unused()
        elif self.image_size:
            raise UserError("--image-size is for samples that are read; a model's images have a size")
        if self.classes and self.classes_file is not None:
            raise UserError("--classes and --classes-file are both given; expected one of them")
        if self.candidates > 1 and self.prompts_file is None:
            raise UserError(f"--candidates is {self.candidates}; expected --prompts-file with it, or 1")
        for flag, values in (("--features", self.features), ("--measures", self.measures)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise UserError(f"{flag} is {list(values)}; expected one or more, each once")

    def _refuse_unused(self) -> None:
        """Images that are read do not depend on how others are generated. A preset may well say it."""
        if self.preset is not None:
            return
        own = ("candidates", "seed", "weights", "precision")
        defaults = {one.name: one.default for one in fields(self)}
        unused = [name for name in own if getattr(self, name) != defaults[name]]
        plain = SampleConfig()
        unused += [n for n, value in vars(self.settings).items() if value != getattr(plain, n)]
        if unused:
            options = ", ".join("--" + name.replace("_", "-") for name in unused)
            raise UserError(f"--samples reads images: {options} would change nothing; leave it out")

    @property
    def extractors(self) -> Sequence[str]:
        return self.features or (["digits"] if self.reference == "digits" else ["pixels:8"])
