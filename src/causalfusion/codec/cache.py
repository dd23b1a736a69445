"""Latents on disk: encode once, train many times.

A cache is a folder: `00000.npy`, `00001.npy`, ... of shape (images, variants, moments, c, h, w),
`labels.npy`, `captions.jsonl` (the list of each image's captions) if there are any, `contents.npy` (a hash of
each image's data), and `manifest.json`.
Where images have sizes of their own, `sizes.npy` holds those of their latents, and a shard is one row of
numbers (`codec/blocks.py`).
Variants are the image and, with data.flip, its mirror image. Moments are the mean and standard deviation of
the autoencoder's posterior if latents are drawn from it, else the mode alone. Latents are raw: scale and
shift are applied on use.

`causalfusion.codec.encode` writes caches, the manifest last: a folder with a manifest is complete.

Shape letters: B images, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from causalfusion.codec.blocks import gather
from causalfusion.codec.codec import Codec, open_codec
from causalfusion.codec.contents import require_same_data
from causalfusion.codec.manifest import CAPTIONS, SIZES, check_arrays, read_manifest
from causalfusion.config import CodecConfig, DataConfig
from causalfusion.config.sizes import size_text
from causalfusion.data import open_source
from causalfusion.data.captions import draw_caption
from causalfusion.data.guess import is_there
from causalfusion.data.labels import Classes
from causalfusion.data.latent_files import is_foreign
from causalfusion.data.lines import LineFile
from causalfusion.errors import UserError, printable
from causalfusion.files import map_array


class LatentCache:
    """Random access to the latents of a complete cache; made by `open_cache`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.class_names: list[str] = manifest["class_names"]
        self._statistics: dict[str, float] = manifest["statistics"]
        self.labels: np.ndarray = np.array(map_array(folder / "labels.npy"))
        self.shard_size: int = manifest["shard_size"]
        self._shards = [map_array(folder / name) for name in manifest["shards"]]
        self.sizes: np.ndarray | None = None
        """(images, 2) latent height and width, 0 for an image that is left out; None where all have one."""
        if manifest["max_area"]:
            self.sizes = np.array(map_array(folder / SIZES))
        check_arrays(manifest, self.labels, self._shards, self.sizes)

    @property
    def classes(self) -> Classes | None:
        """The classes by their numbers in the data; None if the data name their classes."""
        numbers = self.manifest["class_numbers"]
        if numbers is None:
            return None
        return Classes(self.class_names, self.labels, np.array(numbers, np.int64))

    def __reduce__(self) -> tuple[Callable[[str], LatentCache], tuple[str]]:
        """Pickle as the folder: another process opens the files, instead of being sent all arrays."""
        return open_cache, (str(self.folder.absolute()),)

    def __len__(self) -> int:
        return self.manifest["count"]

    @property
    def has_deviations(self) -> bool:
        """True if the cache holds the posterior's standard deviations, so that latents can be drawn."""
        return self.manifest["moments"] == 2

    def statistics(self, latents: Literal["sample", "mode"]) -> tuple[float, float]:
        """Mean and standard deviation of all raw latents: drawn from the posteriors, or their modes."""
        return self._statistics["mean"], self._statistics[f"{latents}_std"]

    def read(self, indices: np.ndarray, flips: np.ndarray | None, noise: Tensor | None) -> Tensor:
        """Raw latents of these images, (B, c, h, w) float32, or of their mirror images where `flips` is True:
        drawn with `noise` (same shape), on its device, or the mode if it is None."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"image {indices.min()} or {indices.max()} of a cache of {len(self)}")
        variants = np.zeros(len(indices), np.int64) if flips is None else np.asarray(flips).astype(np.int64)
        if variants.any() and not self.manifest["flip"]:
            raise UserError(f"the cache {self.folder} holds no mirrored images; encode it with --data.flip")
        draws = noise is not None and self.has_deviations
        moments = self._gather(indices, variants, 2 if draws else 1)
        if noise is None or not draws:
            return torch.from_numpy(moments[:, 0].astype(np.float32))
        mean, std = torch.from_numpy(moments).to(noise.device).float().unbind(1)
        return mean + std * noise

    def _gather(self, indices: np.ndarray, variants: np.ndarray, num_moments: int) -> np.ndarray:
        """Stored moments of these images, (B, moments, c, h, w), in the stored type."""
        kept, latent_shape = self.manifest, tuple(self.manifest["latent_shape"])
        if self.sizes is not None:
            (height, width), *others = np.unique(self.sizes[indices], axis=0).tolist()
            if others or not height:
                raise ValueError("images of several sizes, or one that was left out, cannot be read together")
            latent_shape = (latent_shape[0], height, width)
        gathered = np.empty((len(indices), num_moments, *latent_shape), kept["dtype"])
        shards, rows = np.divmod(indices, self.shard_size)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            if self.sizes is None:
                found = self._shards[shard][rows[chosen], variants[chosen], :num_moments]
            else:
                sizes = self.sizes[shard * self.shard_size : (shard + 1) * self.shard_size]
                shape = (2 if kept["flip"] else 1, kept["moments"], latent_shape[0])
                found = gather(self._shards[shard], sizes, shape, rows[chosen], variants[chosen])
            gathered[chosen] = found[:, :num_moments]
        return gathered

    def grids(self, patch_size: int) -> np.ndarray:
        """Rows and columns of tokens of every image, (images, 2) int32, of a cache of images of several
        sizes. Raises UserError for a patch size that does not divide all of them."""
        assert self.sizes is not None, "images of one size"
        if (self.sizes % patch_size).any():
            made = self.manifest["patch_size"]
            raise UserError(
                f"the cache {self.folder} holds images whose sides are whole tokens for codec.patch_size "
                f"{made}, the run has {patch_size}; give {made}, or encode again into another folder"
            )
        return (self.sizes // patch_size).astype(np.int32)

    @property
    def has_captions(self) -> bool:
        return CAPTIONS in self.manifest["files"]

    def captions(self, indices: np.ndarray) -> list[tuple[str, ...]]:
        """All captions of each of these images; () for an image without captions."""
        if not self.has_captions:
            return [()] * len(indices)
        try:
            return [_captions_of_line(self._caption_lines[index]) for index in indices.tolist()]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.folder / CAPTIONS} cannot be read ({error}); it is damaged: encode again"
            ) from error

    def draw_captions(self, indices: np.ndarray, epochs: np.ndarray, *, seed: int) -> list[str | None]:
        """The caption of each image in its epoch, the same one that a `Loader` draws."""
        images = zip(self.captions(indices), epochs.tolist(), indices.tolist(), strict=True)
        return [draw_caption(texts, seed=seed, epoch=epoch, index=index) for texts, epoch, index in images]

    @cached_property
    def _caption_lines(self) -> LineFile:
        # Read by offset: the captions of a million images would take hundreds of megabytes per process.
        lines = LineFile(self.folder / CAPTIONS)
        if len(lines) != len(self):
            raise ValueError(f"{len(lines)} lines for {len(self)} images")
        return lines

    def codec_config(self, config: CodecConfig) -> CodecConfig:
        """`config` with the sizes of the images that were encoded."""
        sizes = {name: self.manifest[name] for name in ("image_height", "image_width", "image_channels")}
        return replace(config, **sizes, max_area=self.manifest["max_area"])


def _captions_of_line(line: bytes) -> tuple[str, ...]:
    captions = json.loads(line)
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError("a line is no list of captions")
    return tuple(captions)


def open_cache(path: str) -> LatentCache:
    """The cache in a folder written by `causalfusion encode`, or by others (`codec/foreign.py`). Raises
    UserError if it is unfinished, or a file is missing, damaged or of another size than the manifest says."""
    folder = Path(path)
    file = folder / "manifest.json"
    if not file.is_file() and is_foreign(folder):
        from causalfusion.codec.foreign import ForeignCache  # is a cache itself

        return ForeignCache(folder)
    if not file.is_file():
        unfinished = any(folder.glob("[0-9]*.json"))
        what = "is not finished" if unfinished else "is not a cache"
        do = "run the same causalfusion encode again to finish it" if unfinished else "make one with encode"
        raise UserError(f"data.cache {path} {what}: it has no manifest.json; {do}")
    manifest = read_manifest(folder)
    try:
        for name, size in manifest["files"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes"
                raise UserError(
                    f"{folder / name} {state}; expected {size} bytes: encode again, or copy it again"
                )
        return LatentCache(folder, manifest)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the cache {path} cannot be read ({error!r}); it is damaged: encode again"
        ) from error


def check_cache(cache: LatentCache, codec: CodecConfig, data: DataConfig) -> Codec:
    """The codec of these settings, for the cache's images. Raises UserError for a cache that does not hold
    what the settings ask for. A cache of others does not say what it was made of: its shapes are compared.

    A cache that holds more is accepted: mean and deviation include the mode, and mirror images may stay
    unused; raw latents do not depend on the patch size. The data are compared with those that were encoded
    if they are available: built-in, or at a path that is given and exists.
    """
    kept = cache.manifest
    if kept["format"] is None:
        return _check_foreign(cache, codec, data)
    require_same(cache, "codec (pixels or autoencoder)", kept["kind"], codec.kind)
    if codec.kind == "autoencoder":
        require_same(cache, "codec.latents", kept["latents"], codec.latents, fits=cache.has_deviations)
    require_same(cache, "data.flip", kept["flip"], data.flip, fits=not data.flip)
    for name in ("image_height", "image_width", "image_channels"):
        require_same(cache, f"codec.{name}", kept[name], getattr(codec, name), fits=getattr(codec, name) == 0)
    require_same_images(cache, data)
    if data.path or data.source in ("digits", "shapes"):
        setting = "data.path" if data.path else "data.source"
        if data.path and not is_there(data.path):
            warnings.warn(
                f"data.path {printable(data.path)} is not here: the cache {cache.folder} is used without a "
                "look at the images it was made of",
                stacklevel=2,
            )
        else:
            require_same_data(cache.folder, kept, open_source(data), setting)
    opened = open_codec(cache.codec_config(codec), image_shape=None)
    if opened.autoencoder is not None:
        weights = opened.autoencoder_fingerprint
        require_same(cache, "codec.autoencoder (hash of the weights)", kept["autoencoder"], weights)
    return opened


def _check_foreign(cache: LatentCache, codec: CodecConfig, data: DataConfig) -> Codec:
    """`check_cache` of a cache of others."""
    if codec.kind == "pixels":
        raise UserError(
            f"{cache.folder} holds latents of an autoencoder; give the one that encoded them: "
            "--codec.autoencoder"
        )
    require_same(cache, "codec.latents", "sample", codec.latents, fits=cache.has_deviations)
    require_same(cache, "data.flip", cache.manifest["flip"], data.flip, fits=not data.flip)
    opened = open_codec(codec, image_shape=None, latent_shape=tuple(cache.manifest["latent_shape"]))
    height, width = opened.config.image_height, opened.config.image_width
    fits = data.image_size == 0 or data.image_size in (height, size_text(height, width))
    require_same(cache, "data.image_size", size_text(height, width), data.image_size, fits=fits)
    return opened


def require_same_images(cache: LatentCache, data: DataConfig) -> None:
    """Raises UserError unless kind, split and image size of the data are those of the cache. An image size
    that the source's images have without cropping is accepted."""
    made = cache.manifest["data"]
    require_same(cache, "data.source", made["source"], data.source)
    require_same(cache, "data.split", made["split"], data.split)
    sides = {cache.manifest["image_height"], cache.manifest["image_width"]}
    same_size = made["image_size"] == 0 and sides == {data.image_size}
    require_same(cache, "data.image_size", made["image_size"], data.image_size, fits=same_size)
    if data.native:
        require_same(cache, "data.max_area", cache.manifest["max_area"], data.max_area)


def require_same(cache: LatentCache, name: str, kept: object, asked: object, *, fits: bool = False) -> None:
    """Raises UserError, with both values and the remedy, unless they are equal or `fits` is True."""
    if kept != asked and not fits:
        setting, is_hash, _ = name.partition(" (hash")
        do = f"change {setting}" if is_hash else f"give {as_option(name, kept)}"
        raise UserError(
            f"the cache {cache.folder} was made with {name} = {kept}, the run has {asked}; "
            f"{do}, or encode again into another folder"
        )


def as_option(name: str, value: object) -> str:
    """A setting as a command-line option: data.image_size and 32 become --data.image-size=32."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return f"{option}={str(value).lower()}"
    return shlex.join([option, *map(str, value)] if isinstance(value, list) else [f"{option}={value}"])
