"""Settings of fine-tuning for classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from causalfusion.errors import check, check_values


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    label_smoothing: float = 0.1
    """classify: share of each label that is spread over all classes."""
    mixup: float = 0.0
    """classify: images and labels are mixed in pairs, in shares from Beta(mixup, mixup); 0: not."""
    cutmix: float = 0.0
    """classify: a rectangle of each image comes from another, of an area from Beta(cutmix, cutmix); 0: not.
    With both, each batch has one of them."""
    layer_decay: float = 0.75
    """classify: the learning rate of each layer is that of the next one times this; 1: the same for all."""

    def __post_init__(self) -> None:
        check_values(self, "classify")
        check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        for name in ("mixup", "cutmix"):
            check(0 <= getattr(self, name) <= 100, name, getattr(self, name), "0 to 100")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "a number in (0, 1]")


Classify = Annotated[ClassifyConfig, Parameter(parse=False)]
"""The settings in those of a run, which the command `finetune` fills in, not an option of `train`."""
