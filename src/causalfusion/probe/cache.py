"""Features on disk, memory-mapped: one pass of the images for each noise level, whatever the probes.

A folder for each split and level holds `labels.npy`, `pooled-LAYER.npy` (N, D) float32 and, for attentive
probes, `tokens-LAYER.npy` (N, L, D) float16. An interrupted pass goes on where it was.

Shape letters: N images, L tokens, D width of a layer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from causalfusion.data.loader import to_float
from causalfusion.errors import UserError
from causalfusion.files import map_array, write_whole
from causalfusion.generate.features import read_layers
from causalfusion.generate.levels import level_text
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import ProgressLine
from causalfusion.probe.images import ProbeImages

Form = Literal["pooled", "tokens"]
_NOTE = "unfinished.json"
_SECONDS = 20.0
"""Between two notes of how far a pass is."""
_LABELS = "labels"


@dataclass(frozen=True)
class FeatureCache:
    """The features of one split of the images."""

    folder: Path
    split: str
    pipeline: Pipeline
    images: ProbeImages
    seed: int
    batch_size: int

    def features(self, level: float | None, layer: int, form: Form) -> NDArray[np.floating]:
        """Features that `extract` has made, memory-mapped: (N, D), or (N, L, D)."""
        return self._open(level, _name(form, layer))

    def labels(self, level: float | None) -> NDArray[np.int64]:
        """(N,) classes of the images."""
        return np.asarray(self._open(level, _LABELS), np.int64)

    def extract(self, level: float | None, layers: Collection[int], forms: Collection[Form]) -> None:
        """Make the features that are not there yet, in one pass."""
        place = self._place(level)
        asked = [_LABELS, *(_name(form, layer) for layer in sorted(layers) for form in sorted(forms))]
        names = [name for name in asked if not (place / f"{name}.npy").is_file()]
        if not names:
            return
        place.mkdir(parents=True, exist_ok=True)
        done = _done(place, names)
        line = ProgressLine(len(self.images), done, what="images")
        said, saved = f"features of {self.split} images, {level_text(level)}", time.monotonic()
        arrays: dict[str, np.memmap] = {}
        for reads in self.images.batches(self.batch_size, done):
            values = self._read(to_float(reads.pixels), reads.samples.indices, level, names)
            values[_LABELS] = reads.labels
            if not arrays:
                arrays = {name: self._array(place, name, values[name], done) for name in names}
            for name, array in arrays.items():
                array[done : done + len(reads.labels)] = values[name]
            done += len(reads.labels)
            line.show(done, said)
            if time.monotonic() - saved > _SECONDS:
                _save(place, names, arrays, done)
                saved = time.monotonic()
        for array in arrays.values():
            array.flush()
        for name in names:
            _unfinished(place, name).replace(place / f"{name}.npy")
        (place / _NOTE).unlink(missing_ok=True)
        line.close()

    def _read(
        self, images: Tensor, indices: np.ndarray, level: float | None, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Features (B, ...) of images (B, C, H, W), by name. Raises UserError where they are not finite."""
        layers = {int(name.rpartition("-")[2]) for name in names if name != _LABELS}
        if not layers:
            return {}
        tokens = self.pipeline.codec.encode_tokens(images.to(self.pipeline.device), None)
        found = read_layers(
            self.pipeline, tokens, layers, timestep=level, seed=self.seed, image_indices=indices.tolist()
        )
        values = {}
        for name in names:
            form, _, layer = name.rpartition("-")
            if form:
                of_layer = found[int(layer)]
                array = (of_layer.mean(1) if form == "pooled" else of_layer.half()).cpu().numpy()
                if not np.isfinite(array).all():
                    raise UserError(f"the features of layer {int(layer)} are not finite, or too large")
                values[name] = array
        return values

    def _array(self, place: Path, name: str, batch: np.ndarray, done: int) -> np.memmap:
        """The file of an array that is being written, with room for all images."""
        file, shape = _unfinished(place, name), (len(self.images), *batch.shape[1:])
        if done:
            return open_memmap(file, mode="r+")
        return open_memmap(file, mode="w+", dtype=batch.dtype, shape=shape)

    def _place(self, level: float | None) -> Path:
        return self.folder / f"{self.split}-{level_text(level)}"

    def _open(self, level: float | None, name: str) -> NDArray[np.floating]:
        file = self._place(level) / f"{name}.npy"
        try:
            array = map_array(file)
        except (OSError, ValueError):
            array = None
        if array is None or len(array) != len(self.images):
            raise UserError(f"{file} is damaged; delete it, and run the same command again")
        return array


def _name(form: Form, layer: int) -> str:
    return f"{form}-{layer:03d}"


def _unfinished(place: Path, name: str) -> Path:
    return place / f"{name}.unfinished"


def _save(place: Path, names: Sequence[str], arrays: dict[str, np.memmap], done: int) -> None:
    """Note that so many images are on disk."""
    for array in arrays.values():
        array.flush()
    write_whole(place / _NOTE, json.dumps({"names": list(names), "done": done}))


def _done(place: Path, names: Sequence[str]) -> int:
    """Images that an interrupted pass for the same arrays has finished; 0 for none."""
    try:
        note = json.loads((place / _NOTE).read_text())
        same = note["names"] == list(names) and all(_unfinished(place, name).is_file() for name in names)
        return int(note["done"]) if same else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
