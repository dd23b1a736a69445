"""The options of the command `probe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from causalfusion.config import DataConfig
from causalfusion.config.options import GeneratingOptions, Model, require_at_least
from causalfusion.config.sizes import parse_size
from causalfusion.errors import UserError
from causalfusion.generate.levels import parse_level

Kind = Literal["linear", "attentive", "knn"]
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ProbeRequest(GeneratingOptions):
    model: Model
    data: DataConfig = field(default_factory=DataConfig)
    """Labelled images. Default: those of the model's training; `data.holdout` of them are held out as there,
    and are what accuracy is measured on."""
    test: str = ""
    """Measure accuracy on these images instead, as evaluate --reference: a folder, shards, a file."""
    layers: Sequence[str] = (ALL,)
    """Layers to probe: 0 is what enters the first block, 1 what leaves it, -1 what leaves the last; all."""
    levels: Sequence[str] = ("clean",)
    """Noise levels of the images: clean, shares of the path of noise from 0 (the least) to 1, or timesteps
    above 1."""
    kind: Sequence[Kind] = ("linear",)
    """Probes. linear: multinomial logistic regression on the mean over tokens; attentive: one learned query
    attends to the tokens, then a linear layer; knn: the nearest neighbours of the mean over tokens."""
    neighbours: int = 20
    """knn: number of neighbours that vote."""
    steps: int = 500
    """attentive: training steps, of 128 images."""
    images: int | None = None
    """Train the probes on so many of the training images, drawn with --seed. Default: all."""
    size: str = ""
    """Size of the images in pixels, WIDTHxHEIGHT such as 320x192, or a number for a square, to which they are
    cropped and scaled. Default: the model's."""
    batch_size: int = 64
    """Images that go through the model together."""
    out: Path = Path("probe")
    """Folder for probe.json, probe.md, probe.png and the features, which are kept."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "neighbours", "steps", "batch_size")
        require_at_least(10, self, "images")
        if self.size:
            parse_size(self.size, "--size")
        for name in ("layers", "levels", "kind"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{name} is {list(values)}; expected one or more, each once")
        for name, kind in (("steps", "attentive"), ("neighbours", "knn")):
            value = getattr(self, name)
            if value != getattr(ProbeRequest, name) and kind not in self.kind:
                raise UserError(
                    f"--{name} {value} would change nothing, as it needs --kind {kind}; leave it out, or "
                    "change the other"
                )
        self.noise_levels  # noqa: B018 - raises for what is no level
        self.layer_numbers  # noqa: B018

    @property
    def noise_levels(self) -> list[float | None]:
        """The levels; None is clean."""
        return [parse_level(text, "--levels") for text in self.levels]

    @property
    def layer_numbers(self) -> list[int] | None:
        """The layers as given; None: all."""
        if list(self.layers) == [ALL]:
            return None
        for text in self.layers:
            if not text.removeprefix("-").isdecimal():
                raise UserError(f"--layers has {text!r}; expected numbers of layers, such as 2 or -1, or all")
        return [int(text) for text in self.layers]
