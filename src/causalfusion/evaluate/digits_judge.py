"""Judge of generated 8x8 digits for the demo: a scikit-learn classifier that was trained on real digits
alone.

Images are (B, 1, 8, 8) in [-1, 1]. The judge sees them as whole grey levels 0..16, as scikit-learn's digits.

Shape letters: B images.
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
    """Images (B, 1, 8, 8) as whole grey levels 0..16, (B, 64) float32. Raises UserError for another shape."""
    if images.shape[1:] != (1, 8, 8):
        raise UserError(f"images have shape {tuple(images.shape)}; the digits' judge expects (B, 1, 8, 8)")
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * (_LEVELS / 2)).round().flatten(1)


@dataclass(frozen=True)
class DigitsJudge:
    classifier: Any
    """Support-vector classifier with a radial kernel, trained on grey levels."""

    @classmethod
    def trained_on(cls, images: Tensor, labels: Tensor) -> DigitsJudge:
        from sklearn.svm import SVC

        classifier = SVC(kernel="rbf", gamma=_KERNEL_WIDTH, C=10.0)  # pyright: ignore[reportArgumentType]
        return cls(classifier.fit(grey_levels(images).numpy(), labels.cpu().numpy()))

    def read(self, images: Tensor) -> Tensor:
        """Predicted classes, (B,) int64."""
        return torch.from_numpy(np.asarray(self.classifier.predict(grey_levels(images).numpy()), np.int64))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images whose predicted class is their label."""
        return float((self.read(images) == labels.cpu()).double().mean())


def nearest_distance(images: Tensor, references: Tensor) -> float:
    """Mean Euclidean distance, in grey levels, from each image to its nearest reference: 0 for copies.

    New images of the same kind are about as far from the references as unseen real images. A smaller value
    means that a generator repeats its training images, a larger one that its images differ from them.
    """
    return float(torch.cdist(grey_levels(images), grey_levels(references)).min(1).values.mean())
