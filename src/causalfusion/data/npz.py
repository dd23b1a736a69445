"""Images in an .npz file: the array `images` (or ADM's `arr_0`) and, optionally, `labels` (or `arr_1`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from causalfusion.data.labels import Classes, numbered_classes
from causalfusion.data.names import say_left_out
from causalfusion.data.npz_file import NpzFile
from causalfusion.data.source import Example, digest
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, stamp

_MAGIC = b"\x93NUMPY"
_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
"""Arrays of an evaluation's reference that lie beside the images; no warning is needed for them."""


class NpzImages:
    has_captions = False

    def __init__(self, path: str) -> None:
        self.name = path
        images, labels = _load(path)
        shown = printable(path)
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or images.size == 0:
            raise UserError(
                f"{shown}: images are {images.dtype} of shape {images.shape}; "
                "expected uint8 (N, H, W, 1 or 3)"
            )
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
            raise UserError(
                f"{shown}: labels are {labels.dtype} of shape {labels.shape}; "
                f"expected {len(images)} whole numbers"
            )
        self._images, self._given = images, labels
        self.classes: Classes | None = None if labels is None else numbered_classes(labels, shown)
        self.class_names = self.classes.names if self.classes else []

    def __reduce__(self) -> tuple[Callable[[str], NpzImages], tuple[str]]:
        """Pickle as the path: another process maps the file, instead of being sent all images."""
        return NpzImages, (self.name,)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        return Example(np.asarray(self._images[index]), self.label(index))

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self.classes.labels[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return ()

    def image_size(self, index: int) -> tuple[int, int]:
        return self._images.shape[1], self._images.shape[2]

    def image_name(self, index: int) -> str:
        return f"{printable(self.name)} image {index}"

    def content_hash(self, index: int) -> bytes:
        label = -1 if self._given is None else int(self._given[index])
        return digest(label, self._images[index].tobytes())

    def fingerprint(self) -> str:
        return hash_of([self.sizes_fingerprint(), *stamp(self.name)])

    def sizes_fingerprint(self) -> str:
        sample = self._images[:: max(len(self._images) // 256, 1)]
        labels = "" if self._given is None else self._given.astype(np.int64).tobytes().hex()
        return hash_of([self._images.shape, sample.tobytes().hex(), labels])


def _load(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays of images and labels, the latter None if the file has none. Raises UserError."""
    shown = printable(path)
    if not Path(path).is_file():
        raise UserError(f"data.path {shown} is not a file; expected an .npz of images")
    with open(path, "rb") as stream:
        single = stream.read(len(_MAGIC)) == _MAGIC
    if single:
        raise UserError(
            f"{shown} is a single array, not an .npz file; save it with numpy.savez(path, images=...)"
        )
    arrays = NpzFile(Path(path))
    images = next((name for name in ("images", "arr_0") if name in arrays), None)
    labels = next((name for name in ("labels", "arr_1") if name in arrays), None)
    if images is None:
        raise UserError(f"{shown} holds no array `images` or `arr_0`; expected (N, H, W, C) uint8")
    used = {images, labels, *_STATISTICS}
    say_left_out(path, {f"array {name}": 1 for name in arrays.names if name not in used})
    return arrays[images], None if labels is None else arrays[labels]
