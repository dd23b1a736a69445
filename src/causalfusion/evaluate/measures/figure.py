"""One measured figure, and its name: what was measured, in which features, from how many images.

In Inception's features the names are the customary ones, `fid_50k`; in others they tell which,
`frechet_pixels8_10k`. A whole number of thousands is written with a k, any other in full: `fid_1797`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from causalfusion.errors import UserError

MeasureName = Literal[
    "frechet", "spatial_frechet", "inception_score", "kernel", "precision_recall", "density_coverage",
    "class_accuracy", "frechet_infinity",
]  # fmt: skip
"""What can be asked for; `precision_recall` and `density_coverage` are two figures each."""
MEASURES: tuple[MeasureName, ...] = get_args(MeasureName)
LOWER_IS_BETTER = ("frechet", "spatial_frechet", "kernel", "frechet_infinity")
INCEPTION_NAMES = {
    "frechet": "fid", "spatial_frechet": "sfid", "inception_score": "is", "kernel": "kid",
    "frechet_infinity": "fid_infinity",
}  # fmt: skip
"""Their names in Inception's features."""
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Figure:
    quantity: str
    """A measure's name; `precision`, `recall`, `density` and `coverage` one by one."""
    value: float
    count: int
    """N, the images measured."""
    features: str
    features_fingerprint: str
    reference: str = ""
    """Fingerprint of what it was measured against; empty for what needs nothing."""
    low: float | None = None
    high: float | None = None
    """95 % interval, where there is one."""
    standard_error: float | None = None
    warning: str = ""
    """What a reader has to know of it."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise UserError(
                f"{self.name} is {self.value}; expected a number: look for broken images or features"
            )

    @property
    def base(self) -> str:
        """The name without N: figures of the same base are the same thing measured from other numbers."""
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
        """95 %, from the standard error where there is nothing better."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if self.standard_error is None:
            return None
        reach = _NORMAL_95 * self.standard_error
        return self.value - reach, self.value + reach


def count_word(count: int) -> str:
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def is_inception(features: str) -> bool:
    return features.split(":")[0] == "inception"


def features_word(features: str) -> str:
    """Letters and digits: what follows the colon if that is a name (of a path its last part, without an
    ending), else all."""
    kind, _, rest = features.partition(":")
    last = re.split(r"[/\\:]", rest)[-1]
    stem = last.rsplit(".", 1)[0] if re.search(r"[A-Za-z]", last) else ""
    return re.sub(r"[^a-z0-9]", "", (stem or kind + rest).lower()) or "features"


def format_value(value: float) -> str:
    """Four digits that count."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"
