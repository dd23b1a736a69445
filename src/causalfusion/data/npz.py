"""Arrays of images in an .npz file: `images` (or ADM's `arr_0`) and, if there, `labels` (or `arr_1`)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from causalfusion.data.source import Example, numbered_classes
from causalfusion.errors import UserError
from causalfusion.files import hash_of


class NpzImages:
    has_captions = False

    def __init__(self, path: str) -> None:
        self.name = path
        images, labels = _load(path)
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or images.size == 0:
            raise UserError(
                f"{path}: images are {images.dtype} of shape {images.shape}; expected uint8 (N, H, W, 1 or 3)"
            )
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
            raise UserError(
                f"{path}: labels are {labels.dtype} of shape {labels.shape}; "
                f"expected {len(images)} whole numbers"
            )
        self._images, self._labels = images, labels
        self.class_names = [] if labels is None else numbered_classes(labels, path)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        label = None if self._labels is None else int(self._labels[index])
        return Example(self._images[index], label)

    def fingerprint(self) -> str:
        sample = self._images[:: max(len(self._images) // 256, 1)]
        labels = "" if self._labels is None else self._labels.astype(np.int64).tobytes().hex()
        return hash_of([self._images.shape, sample.tobytes().hex(), labels])


def _load(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(images, labels or None)."""
    if not Path(path).is_file():
        raise UserError(f"data.path {path} is not a file; expected an .npz of images")
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise UserError(
                f"{path} is a single array, not an .npz file; save it with numpy.savez(path, images=...)"
            )
        with arrays:
            images, labels = _pick(arrays, "images", "arr_0"), _pick(arrays, "labels", "arr_1")
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as .npz ({reason}); it is damaged, cut short or no .npz"
        ) from error
    if images is None:
        raise UserError(f"{path} holds no array `images` or `arr_0`; expected (N, H, W, C) uint8")
    return images, labels


def _pick(arrays: np.lib.npyio.NpzFile, *names: str) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays.files), None)
