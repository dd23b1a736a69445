"""The 1,797 handwritten digits that ship with scikit-learn: 8x8 pixels, grey."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from causalfusion.data.source import Example
from causalfusion.files import hash_of


def _file() -> Path:
    """The file that `sklearn.datasets.load_digits` reads. It is found without importing scikit-learn, which
    would add a second to the start of every run on digits."""
    found = find_spec("sklearn")
    assert found is not None and found.submodule_search_locations, "scikit-learn is a dependency"
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


class Digits:
    name = "digits"
    has_captions = False

    def __init__(self) -> None:
        table = np.loadtxt(_file(), delimiter=",", dtype=np.int64)
        pixels, labels = table[:, :-1], table[:, -1]
        self.class_names = [str(digit) for digit in range(10)]
        # The 17 grey levels 0..16 are scaled to 0..255.
        self._images = np.round(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)[..., None]
        self._labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        return Example(self._images[index], self.label(index))

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return ()

    def fingerprint(self) -> str:
        return hash_of([self.name, self._images.tobytes().hex()])
