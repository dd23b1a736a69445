"""Do generated digits read as their class? A scikit-learn classifier that has seen only real ones says.

Shape letters: B images. Images are (B, 1, 8, 8) in [-1, 1]; the judge sees them as scikit-learn's digits
come: grey levels 0..16, whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalfusion.errors import UserError

_LEVELS = 16
_KERNEL_WIDTH = 0.001


def grey_levels(images: Tensor) -> Tensor:
    """(B, 64) float32 whole numbers 0..16, the levels of scikit-learn's digits."""
    if images.shape[1:] != (1, 8, 8):
        raise UserError(f"images have shape {tuple(images.shape)}; the digits' judge expects (B, 1, 8, 8)")
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * (_LEVELS / 2)).round().flatten(1)


@dataclass(frozen=True)
class DigitsJudge:
    classifier: Any
    """A support-vector classifier with a radial kernel, trained on grey levels."""

    @classmethod
    def trained_on(cls, images: Tensor, labels: Tensor) -> DigitsJudge:
        from sklearn.svm import SVC

        classifier = SVC(kernel="rbf", gamma=_KERNEL_WIDTH, C=10.0)  # pyright: ignore[reportArgumentType]
        return cls(classifier.fit(grey_levels(images).numpy(), labels.cpu().numpy()))

    def read(self, images: Tensor) -> Tensor:
        """(B,) int64: the class that each image looks like."""
        return torch.from_numpy(np.asarray(self.classifier.predict(grey_levels(images).numpy()), np.int64))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of the images that read as their class."""
        return float((self.read(images) == labels.cpu()).double().mean())


def nearest_distance(images: Tensor, references: Tensor) -> float:
    """Mean Euclidean distance, in grey levels, from each image to its nearest reference: 0 for copies.

    New images of the same kind come out near the value of unseen real ones; a smaller value means that a
    generator repeats its training images, a larger one that its images are unlike them.
    """
    return float(torch.cdist(grey_levels(images), grey_levels(references)).min(1).values.mean())
