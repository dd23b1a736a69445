"""Arrays of images in an .npz file: `images` (or ADM's `arr_0`) and, if there, `labels` (or `arr_1`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from causalfusion.data.source import Example, hash_of
from causalfusion.errors import UserError


class NpzImages:
    def __init__(self, path: str) -> None:
        self.name = path
        if not Path(path).is_file():
            raise UserError(f"data.path {path} is not a file; expected an .npz of images")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images, labels = _pick(arrays, "images", "arr_0"), _pick(arrays, "labels", "arr_1")
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error
        except Exception as error:  # zipfile's and zlib's own kinds
            raise UserError(f"{path} is not a whole .npz file ({error})") from error
        if images is None:
            raise UserError(f"{path} holds no array `images` or `arr_0`; expected (N, H, W, C) uint8")
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{path}: images are {images.dtype} of shape {images.shape}; expected uint8 (N, H, W, 1 or 3)"
            )
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
            raise UserError(f"{path}: labels have shape {labels.shape}; expected {len(images)} whole numbers")
        if labels is not None and len(labels) and int(labels.min()) < 0:
            raise UserError(f"{path}: a label is {int(labels.min())}; expected numbers from 0")
        self._images, self._labels = images, labels
        self.class_names = [] if labels is None else [str(i) for i in range(int(labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        label = None if self._labels is None else int(self._labels[index])
        return Example(self._images[index], label)

    def fingerprint(self) -> str:
        sample = self._images[:: max(len(self._images) // 256, 1)]
        return hash_of([self._images.shape, sample.tobytes().hex()])


def _pick(arrays: np.lib.npyio.NpzFile, *names: str) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays.files), None)
