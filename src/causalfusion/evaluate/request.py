"""The options of the command `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from causalfusion.config import SampleConfig
from causalfusion.config.options import (
    DEFAULT_MODEL,
    GeneratingOptions,
    Model,
    Settings,
    option_name,
    require_at_least,
)
from causalfusion.config.sizes import parse_size
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.figure import MeasureName
from causalfusion.generate.request import RopeRule

DEFAULT_IMAGES = 10_000
"""Images that a model generates where no number is given."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(GeneratingOptions):
    """Either `model` generates the samples, or they are read from `samples`."""

    model: Annotated[Model | None, Parameter(show_default=str(DEFAULT_MODEL))] = None
    samples: str | None = None
    """Measure these images instead: a sample set, the folder of `sample`, a folder of images, an .npz (images
    in arr_0, labels in arr_1)."""
    reference: str | None = None
    """Real images to compare with: digits, shapes[:SPLIT], a folder of images, shards ('*.tar'), .jsonl, an
    .npz of images, or an .npz of statistics (mu, sigma). Its features are kept in the cache."""
    features: Sequence[str] | None = None
    """One or several of: pixels[:SIDE], digits, resnet-cifar[-jpeg]:PATH, inception[:PATH],
    model:RUN[:LAYER[:LEVEL]], transformers:ID, module:attribute. Default: digits where the reference is
    digits, else pixels:8."""
    measures: Sequence[MeasureName] | None = None
    """Figures to compute. Default: all that the reference and the features allow."""
    images: int | None = None
    """N, the number of images. Default: 10,000 generated ones, or all that --samples has."""
    out: Path = Path("evaluation")
    """Folder for `card.json`, `grid.png` and the samples."""
    preset: str | None = None
    """A named evaluation, which other options override: paper-ablation, paper-system, paper-text. The model's
    own sampling settings are then ignored."""
    classes: Sequence[str] = ()
    """Names or numbers; image i gets classes[i % number of classes]. Default: balanced, all in turn."""
    classes_file: Path | None = None
    """UTF-8 file with one class on each line, instead of --classes."""
    prompts_file: Path | None = None
    """UTF-8 file with one prompt on each line; image i gets prompt[i % number of prompts]."""
    candidates: int = 1
    """Images generated for each one that is kept, which is the one under which the prompt is most likely,
    according to the model."""
    size: str = ""
    """Size of the generated images in pixels: WIDTHxHEIGHT such as 320x192, or a number for a square. The
    reference is cropped and scaled to it. Default: the model's."""
    rope_extrapolation: RopeRule = None
    batch_size: int = 64
    """Images that are generated, or whose features are computed, together."""
    image_size: int = 0
    """Side, in pixels, to which images from --samples are cropped and scaled; 0: their own size."""
    reference_images: int | None = None
    """Number of images of the reference to compare with, always the same ones. Default: all."""
    cache: Path | None = None
    """Folder for the features of references. Default: ~/.cache/causalfusion (XDG_CACHE_HOME)."""
    num_workers: int = 0
    """Processes that read images."""
    show_progress: bool = True
    """Print the progress."""
    settings: Annotated[SampleConfig, Settings] = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        require_at_least(1, self, "images", "batch_size", "candidates", "reference_images")
        require_at_least(0, self, "image_size", "num_workers")
        if self.samples is not None:
            generating = ("model", "classes", "classes_file", "prompts_file", "autoencoder", "size")
            generating += ("rope_extrapolation", "adapters", "adapter_weights")
            given = next((name for name in generating if getattr(self, name)), None)
            if given is not None:
                raise UserError(f"--samples and {option_name(given)} are both given; expected one of them")
            self._refuse_unused()
        elif self.image_size:
            raise UserError("--image-size is for samples that are read; --size is that of a model's images")
        if self.size:
            parse_size(self.size, "--size")
        for name in ("reference_images", "cache"):
            if self.reference is None and self.preset is None and getattr(self, name) is not None:
                raise UserError(f"{option_name(name)} is of a reference; give --reference, or leave it out")
        if self.classes and self.classes_file is not None:
            raise UserError("--classes and --classes-file are both given; expected one of them")
        if self.candidates > 1 and self.prompts_file is None:
            raise UserError(f"--candidates is {self.candidates}; expected --prompts-file with it, or 1")
        for flag, values in (("--features", self.features), ("--measures", self.measures)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise UserError(f"{flag} is {list(values)}; expected one or more, each once")

    def _refuse_unused(self) -> None:
        """Raise UserError for options of generation beside images that are read. A preset may have them."""
        if self.preset is not None:
            return
        own = ("candidates", "seed", "weights", "precision", "quantize")
        defaults = {option.name: option.default for option in fields(self)}
        unused = [name for name in own if getattr(self, name) != defaults[name]]
        plain = SampleConfig()
        unused += [n for n, value in vars(self.settings).items() if value != getattr(plain, n)]
        if unused:
            options = ", ".join(map(option_name, unused))
            raise UserError(f"--samples reads images: {options} would change nothing; leave it out")

    @property
    def extractors(self) -> Sequence[str]:
        """The feature spaces given, or the default for the reference."""
        return self.features or (["digits"] if self.reference == "digits" else ["pixels:8"])
