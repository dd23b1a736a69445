"""Latents as others cache them: MAR's and LightningDiT's files, by index.

MAR (`main_cache.py`) writes an .npz for each image into class folders: `moments` and, of its mirror image,
`moments_flip`, each (2c, h, w): the posterior's mean and logarithm of the variance. LightningDiT
(`extract_features.py`) writes .safetensors of many images: `latents` and `latents_flip` (N, c, h, w), drawn
from the posterior once, and `labels` (N,). Its `latents_stats.pt` is a pickle, and is not read.

Shape letters: B images, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.data.labels import Classes, named_classes, numbered_classes
from causalfusion.data.names import is_hidden
from causalfusion.data.npz_file import NpzFile
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, stamp

_MAX_HEADER = 2**24
"""Bytes of a .safetensors header that are read to recognise a file."""
_STAMPED = 256
"""Files whose sizes and times are part of a fingerprint: a million take long to ask for."""
_LOG_VARIANCE = (-30.0, 20.0)
"""Bounds of the logarithm of the variance, as the autoencoder itself applies them."""


class MomentFiles:
    """MAR's cache: means and standard deviations of posteriors, by class folder."""

    has_deviations = True

    def __init__(self, folder: Path) -> None:
        self._files, labels = [], []
        for place in _class_folders(folder):
            files = sorted(str(file) for file in place.rglob("*.npz") if not is_hidden(file.name))
            self._files += files
            labels += [place.name] * len(files)
        self.classes: Classes = named_classes(labels)
        first = NpzFile(Path(self._files[0]))
        self.has_flips = "moments_flip" in first
        shape = first.shape("moments")
        if len(shape) != 3 or shape[0] % 2 or not min(shape):
            raise UserError(
                f"{printable(self._files[0])}: moments have the shape {shape}; expected (2c, h, w), means "
                "and logarithms of variances"
            )
        self.latent_shape = (shape[0] // 2, shape[1], shape[2])
        self.fingerprint = _fingerprint(folder, self._files)

    def read(self, index: int, *, flipped: bool) -> np.ndarray:
        """(2, c, h, w) float32: mean and standard deviation. Raises UserError."""
        file, name = NpzFile(Path(self._files[index])), "moments_flip" if flipped else "moments"
        expected = (2 * self.latent_shape[0], *self.latent_shape[1:])
        if name not in file or file.shape(name) != expected:
            found = file.shape(name) if name in file else "missing"
            raise UserError(
                f"{printable(self._files[index])}: {name} is {found}; expected {expected}, as in the first "
                "file: encode the image again"
            )
        mean, log_variance = np.split(np.asarray(file[name], np.float32), 2)
        return np.stack([mean, np.exp(0.5 * log_variance.clip(*_LOG_VARIANCE))])


class LatentFiles:
    """LightningDiT's cache: latents that were drawn once."""

    has_deviations = False

    def __init__(self, folder: Path) -> None:
        self._files = [str(path) for path in _safetensors(folder)]
        headers = [_header(Path(path)) or {} for path in self._files]
        shapes = [_shape(header, "latents") for header in headers]
        self.latent_shape: tuple[int, ...] = shapes[0][1:]
        self.has_flips = all("latents_flip" in header for header in headers)
        for path, header, shape in zip(self._files, headers, shapes, strict=True):
            flips = _shape(header, "latents_flip") if self.has_flips else shape
            fits = len(shape) == 4 and min(shape) > 0 and shape[1:] == self.latent_shape and flips == shape
            if not fits or _shape(header, "labels") != shape[:1]:
                raise UserError(
                    f"{printable(path)}: latents are {shape}, labels {_shape(header, 'labels')}; expected "
                    f"(N, c, h, w), the last three {self.latent_shape} as in the first file, and (N,)"
                )
        self._starts = np.cumsum([0, *(shape[0] for shape in shapes)])
        labels = np.concatenate([self._array(path, "labels") for path in self._files])
        self.classes: Classes = numbered_classes(labels, printable(folder))
        self.fingerprint = _fingerprint(folder, self._files)

    def read(self, index: int, *, flipped: bool) -> np.ndarray:
        """(1, c, h, w) float32. Raises UserError."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row, name = index - int(self._starts[number]), "latents_flip" if flipped else "latents"
        return self._array(self._files[number], name, row)

    def _array(self, path: str, name: str, row: int | None = None) -> np.ndarray:
        """An array of a file, or one row of it, (1, ...). Raises UserError."""
        try:
            part = _opened(path).get_slice(name)
            tensor = part[:] if row is None else part[row : row + 1]
        except Exception as error:  # safetensors' own
            raise UserError(f"{printable(path)}: {name} cannot be read ({error}); copy it again") from error
        return tensor.numpy() if row is None else tensor.float().numpy()


def is_foreign(folder: Path) -> bool:
    """True for a folder with latents of MAR or LightningDiT."""
    return bool(folder.is_dir() and (_holds_latents(folder) or _holds_moments(folder)))


def open_latent_files(folder: Path) -> MomentFiles | LatentFiles:
    """The latents in a folder for which `is_foreign` is True. Raises UserError."""
    return LatentFiles(folder) if _holds_latents(folder) else MomentFiles(folder)


def _holds_latents(folder: Path) -> bool:
    first = next(iter(_safetensors(folder)), None)
    header = None if first is None else _header(first)
    return header is not None and {"latents", "labels"} <= set(header)


def _holds_moments(folder: Path) -> bool:
    for place in _class_folders(folder):
        for file in place.rglob("*.npz"):
            try:
                return "moments" in NpzFile(file)
            except UserError:
                return False
    return False


def _class_folders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    yield from (folder / name for name in names)


def _safetensors(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if not is_hidden(path.name))


def _header(path: Path) -> dict[str, Any] | None:
    """The description of a .safetensors file's tensors; None for what is none."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if size <= _MAX_HEADER else None
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _shape(header: dict[str, Any], name: str) -> tuple[int, ...]:
    found = header.get(name)
    return tuple(found.get("shape", ())) if isinstance(found, dict) else ()


@lru_cache(maxsize=256)
def _opened(path: str) -> Any:
    """A file of tensors, mapped into memory."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _fingerprint(folder: Path, files: list[str]) -> str:
    """A hash of all names, and of the sizes and times of some files."""
    some = files[:: -(-len(files) // _STAMPED)]
    return hash_of([*(os.path.relpath(file, folder) for file in files), *map(stamp, some)])
