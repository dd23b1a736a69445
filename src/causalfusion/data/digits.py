"""The 1,797 handwritten digits that ship with scikit-learn: 8x8 pixels, grey."""

from __future__ import annotations

import numpy as np

from causalfusion.data.source import Example
from causalfusion.files import hash_of


class Digits:
    name = "digits"
    has_captions = False

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        self.class_names = [str(digit) for digit in range(10)]
        # The 17 grey levels 0..16 are scaled to 0..255.
        self._images = np.round(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)[..., None]
        self._labels = np.asarray(labels)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        return Example(self._images[index], int(self._labels[index]))

    def fingerprint(self) -> str:
        return hash_of([self.name, self._images.tobytes().hex()])
