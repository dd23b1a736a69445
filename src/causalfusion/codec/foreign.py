"""Caches of latents that others wrote (`data/latent_files.py`), read in place as a cache of our own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from causalfusion.codec.cache import LatentCache, open_cache
from causalfusion.data.latent_files import open_latent_files
from causalfusion.data.source import spread
from causalfusion.errors import UserError

_STATISTICS_IMAGES = 2048
"""At most so many images, evenly spread, are what mean and deviation are measured on."""


class ForeignCache(LatentCache):
    """Latents of one size, with labels; who made them of what is not known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._store = folder, open_latent_files(folder)
        classes = self._store.classes
        self.labels, self.class_names, self.sizes = classes.labels, classes.names, None
        self.manifest = {
            "format": None,
            "kind": "autoencoder",
            "source": self._store.fingerprint,
            "count": len(self.labels),
            "flip": self._store.has_flips,
            "moments": 2 if self._store.has_deviations else 1,
            "latent_shape": list(self._store.latent_shape),
            "class_names": classes.names,
            "class_numbers": None if classes.numbers is None else classes.numbers.tolist(),
            "max_area": 0,
            "files": {},
        }
        self._measured = lru_cache(self._measure)

    def __reduce__(self) -> tuple[Callable[[str], LatentCache], tuple[str]]:
        return open_cache, (str(self.folder.absolute()),)

    def statistics(self, latents: Literal["sample", "mode"]) -> tuple[float, float]:
        """Mean and standard deviation of the raw latents of 2048 images, or of all if there are fewer."""
        return self._measured(latents)

    def _measure(self, latents: Literal["sample", "mode"]) -> tuple[float, float]:
        count, total, squares = 0, 0.0, 0.0
        for index in spread(np.arange(len(self)), _STATISTICS_IMAGES).tolist():
            moments = self._store.read(index, flipped=False).astype(np.float64)
            count, total = count + moments[0].size, total + float(moments[0].sum())
            used = moments if latents == "sample" else moments[:1]
            squares += float(np.square(used).sum())
        mean = total / count
        variance = squares / count - mean**2
        if not 1e-12 < variance < np.inf:
            raise UserError(f"the latents in {self.folder} have the variance {variance:g}; they are damaged")
        return mean, variance**0.5

    def _gather(self, indices: np.ndarray, variants: np.ndarray, num_moments: int) -> np.ndarray:
        rows = zip(indices.tolist(), variants.tolist(), strict=True)
        return np.stack([self._store.read(n, flipped=bool(v))[:num_moments] for n, v in rows])
