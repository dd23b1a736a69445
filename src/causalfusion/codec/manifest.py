"""The manifest of a latent cache, `manifest.json`: all of it is checked before anything else is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from causalfusion.codec.blocks import num_values
from causalfusion.config.serialize import from_dict, read_json
from causalfusion.errors import UserError, printable

FORMAT = "causalfusion-latents-4"
FORMAT_OF_SIZES = "causalfusion-latents-5"
"""The format of caches of images of several sizes."""
OLD_FORMAT = "causalfusion-latents-3"
"""The format whose fingerprints ignore the times of files, and that holds no hashes of contents."""
CAPTIONS = "captions.jsonl"
SIZES = "sizes.npy"
"""File with the latent height and width of each image, (images, 2) int32, where they differ."""
CONTENTS = "contents.npy"
"""File with a hash of each image's data, (images, 16) uint8."""


@dataclass(frozen=True)
class _Statistics:
    mean: float
    mode_std: float
    sample_std: float


@dataclass(frozen=True)
class _Data:
    """Those settings of the data that a run's settings are compared with."""

    source: str
    split: str
    image_size: int | str


@dataclass(frozen=True)
class _Manifest:
    """The fields and their types, for checking; the package reads the values from the JSON object itself."""

    format: str
    kind: Literal["pixels", "autoencoder"]
    autoencoder: str | None
    latents: Literal["sample", "mode"]
    image_height: int
    image_width: int
    image_channels: int
    latent_shape: list[int]
    source: str
    count: int
    flip: bool
    moments: int
    dtype: Literal["float16", "float32"]
    shard_size: int
    class_names: list[str]
    class_numbers: list[int] | None
    statistics: _Statistics
    replaced_images: int
    shards: list[str]
    files: dict[str, int]
    data: dict[str, Any]
    codec: dict[str, Any]
    max_area: int
    """Most pixels of an image, where images have several sizes; else 0."""
    patch_size: int
    """The one for which their sides are whole tokens; else 0."""
    words: str
    """Hash of the captions of the classes, where they are those; else empty."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete cache. Raises UserError if it is damaged or of another format."""
    file, where = folder / "manifest.json", f"the cache {printable(folder)}"
    values = read_json(file, where)
    version = values.get("format") if isinstance(values, dict) else None
    if version not in (FORMAT, FORMAT_OF_SIZES, OLD_FORMAT):
        raise UserError(f"{where} is in the format {version!r}; expected {FORMAT!r}: encode again")
    values.setdefault("class_numbers", None)
    values.setdefault("max_area", 0)
    values.setdefault("patch_size", 0)
    values.setdefault("words", "")
    try:
        kept = from_dict(_Manifest, values, complete=True)
        compared = {name: kept.data[name] for name in _Data.__dataclass_fields__ if name in kept.data}
        from_dict(_Data, compared, "data.", complete=True)
    except UserError as error:
        raise UserError(f"{where} cannot be read ({error}); it is damaged: encode again") from None
    shards = -(-kept.count // kept.shard_size) if kept.shard_size > 0 else 0
    sound = (
        kept.count > 0
        and shards == len(kept.shards)
        and kept.moments in (1, 2)
        and len(kept.latent_shape) == 3
        and min(*kept.latent_shape, kept.image_height, kept.image_width, kept.image_channels) > 0
        and kept.statistics.mode_std > 0
        and kept.statistics.sample_std > 0
        and set(kept.files) >= {"labels.npy", *kept.shards, *([SIZES] if kept.max_area else [])}
        and (version == FORMAT_OF_SIZES) == (kept.max_area > 0)
        and all(Path(name).name == name for name in kept.files)
        and (kept.class_numbers is None or len(kept.class_numbers) == len(kept.class_names))
    )
    if not sound:
        raise UserError(f"{where} cannot be read (its manifest does not fit together); encode again")
    return values


def check_arrays(
    manifest: dict[str, Any], labels: np.ndarray, shards: list[np.ndarray], sizes: np.ndarray | None
) -> None:
    """Raises ValueError for arrays whose type, shape or labels do not match the manifest."""
    count, size = manifest["count"], manifest["shard_size"]
    classes = max(len(manifest["class_names"]), 1)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels.npy is {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, of {classes} classes")
    row = (2 if manifest["flip"] else 1, manifest["moments"], *manifest["latent_shape"])
    if sizes is not None and (sizes.shape != (count, 2) or sizes.dtype.kind not in "iu" or sizes.min() < 0):
        raise ValueError(f"{SIZES} is {sizes.dtype} of shape {sizes.shape}")
    for number, shard in enumerate(shards):
        expected = (min(size, count - number * size), *row)
        if sizes is not None:
            of_shard = sizes[number * size : (number + 1) * size]
            expected = (num_values(of_shard, math.prod(row[:3])),)
        if shard.shape != expected or shard.dtype != np.dtype(manifest["dtype"]):
            raise ValueError(
                f"{manifest['shards'][number]} is {shard.dtype} of shape {shard.shape}, expected {expected}"
            )
        if math.prod(shard.shape) == 0 and sizes is None:
            raise ValueError(f"{manifest['shards'][number]} is empty")
