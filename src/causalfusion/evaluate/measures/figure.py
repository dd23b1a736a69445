"""One measured figure, and its name: the quantity, the features, the number of images.

In Inception's features the names are the customary ones, `fid_50k`; in others they name the features,
`frechet_pixels8_10k`. A whole number of thousands is written with a k, any other in full: `fid_1797`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from causalfusion.errors import UserError

MeasureName = Literal[
    "frechet",
    "spatial_frechet",
    "inception_score",
    "kernel",
    "precision_recall",
    "density_coverage",
    "class_accuracy",
    "frechet_infinity",
]
"""A measure by the name that users give; `precision_recall` and `density_coverage` give two figures each."""
MEASURES: tuple[MeasureName, ...] = get_args(MeasureName)
LOWER_IS_BETTER = ("frechet", "spatial_frechet", "kernel", "frechet_infinity", "reconstruction_frechet", "l1")
WITHOUT_REFERENCE = ("inception_score", "class_accuracy")
"""Quantities that no images are compared for."""
INCEPTION_NAMES = {
    "frechet": "fid",
    "spatial_frechet": "sfid",
    "inception_score": "is",
    "kernel": "kid",
    "frechet_infinity": "fid_infinity",
    "reconstruction_frechet": "rfid",
}
"""Customary names of quantities in Inception's features."""
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Figure:
    quantity: str
    """Name of a measure, or one of `precision`, `recall`, `density` and `coverage`; of reconstructions, `l1`,
    `psnr`, `ssim` or `reconstruction_frechet`."""
    value: float
    count: int
    """Number of images measured, N."""
    features: str
    """Name of the feature space."""
    features_fingerprint: str
    reference: str = ""
    """Fingerprint of the reference; empty for measures without one."""
    low: float | None = None
    """Lower end of the 95 % interval; None where there is none."""
    high: float | None = None
    """Upper end of the 95 % interval; None where there is none."""
    standard_error: float | None = None
    warning: str = ""
    """Reason to distrust the value; empty where there is none."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise UserError(
                f"{self.name} is {self.value}; expected a number: look for broken images or features"
            )

    @property
    def base(self) -> str:
        """The name without N. Figures of one base are the same quantity, for any number of images."""
        if is_inception(self.features):
            return INCEPTION_NAMES.get(self.quantity, self.quantity)
        return f"{self.quantity}_{features_word(self.features)}"

    @property
    def name(self) -> str:
        return f"{self.base}_{count_word(self.count)}"

    @property
    def lower_is_better(self) -> bool:
        return self.quantity in LOWER_IS_BETTER

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval: the measured one, else one from the standard error, else None."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if self.standard_error is None:
            return None
        reach = _NORMAL_95 * self.standard_error
        return self.value - reach, self.value + reach


def count_word(count: int) -> str:
    """A number of images as names contain it: 50k, 1797."""
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def is_inception(features: str) -> bool:
    return features.split(":")[0] == "inception"


def features_word(features: str) -> str:
    """The part of a figure's name that stands for a feature space: lower-case letters and digits. It is what
    follows the colon if that contains letters (of a path the last part, without suffix), else all of it."""
    kind, _, rest = features.partition(":")
    last = re.split(r"[/\\:]", rest)[-1]
    stem = last.rsplit(".", 1)[0] if re.search(r"[A-Za-z]", last) else ""
    return re.sub(r"[^a-z0-9]", "", (stem or kind + rest).lower()) or "features"


def format_value(value: float) -> str:
    """A value with four significant digits."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"
