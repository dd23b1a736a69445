"""Writing a latent cache, shard by shard; `codec/cache.py` describes its files.

An interrupted run continues after the finished shards of the same settings. The manifest is written last;
then the shards' notes are removed.

Shape letters: B images, C image channels, H and W pixels, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from causalfusion.codec.cache import LatentCache, open_cache, require_same, require_same_images
from causalfusion.codec.codec import Codec, open_codec
from causalfusion.codec.contents import fingerprint_like, require_same_data
from causalfusion.codec.manifest import CAPTIONS, CONTENTS, FORMAT, OLD_FORMAT
from causalfusion.codec.shard import Shard, Tally, read_note
from causalfusion.config import DataConfig, RunConfig
from causalfusion.config.serialize import to_dict
from causalfusion.data import ImageSource, open_source
from causalfusion.data.labels import Classes
from causalfusion.data.loader import Batch, batch_of, leave_signals, load_indices, read_indices, unchanged
from causalfusion.data.reader import Reads
from causalfusion.data.source import TracedSource, content_hashes
from causalfusion.errors import UserError
from causalfusion.files import in_use, write_whole
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.runtime import select_device

SHARD_SIZE = 4096
"""Images in a shard: few files to open, and little work lost when a run is interrupted."""

_SETTINGS = {
    "kind": "codec (pixels or autoencoder)", "autoencoder": "codec.autoencoder (hash of the weights)",
    "latents": "codec.latents",
    "flip": "data.flip", "source": "data.path (hash of the data)",
}  # fmt: skip
"""Names of settings, for messages, by field of a cache's identity."""

DtypeName = Literal["float16", "float32"]


def encode_to_cache(
    run: RunConfig,
    out: Path,
    *,
    batch_size: int = 64,
    dtype: DtypeName | Literal["auto"] = "auto",
    device: str = "auto",
) -> LatentCache:
    """Encode the run's data with its codec. The dtype `auto` is float32 for pixels, which is exact, and
    float16 for latents. Raises UserError."""
    if batch_size < 1:
        raise UserError(f"batch-size is {batch_size}; expected at least 1")
    if run.data.cache:
        raise UserError(f"data.cache is {run.data.cache!r}; encode reads images: leave it out")
    source = open_source(run.data)
    first = load_indices(source, np.arange(1), run.data)
    channels, height, width = first.images.shape[1:]
    codec = open_codec(run.codec, image_shape=(channels, height, width)).to(select_device(device))
    if dtype == "auto":
        dtype = "float32" if codec.autoencoder is None else "float16"
    line = ProgressLine(len(source), 0)

    def progress(done: int) -> None:
        line.first = done if line.last_shown < 0 else line.first  # the rate excludes images of earlier runs
        line.show(done, str(out), force=done == len(source))

    try:
        return write_cache(out, source, codec, run, dtype=dtype, batch_size=batch_size, progress=progress)
    finally:
        line.close()


def write_cache(
    folder: Path,
    source: ImageSource,
    codec: Codec,
    config: RunConfig,
    *,
    dtype: DtypeName,
    batch_size: int = 64,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], None] = lambda done: None,
) -> LatentCache:
    """Encode a whole source; `progress` is called with the number of encoded images. A complete cache of the
    same data and settings is returned as it is. Raises UserError for a folder with any other cache, or with
    finished shards of other settings."""
    with in_use(folder, "the cache"):
        return _write(
            folder, source, codec, config, dtype=dtype, batch_size=batch_size, shard_size=shard_size,
            progress=progress,
        )  # fmt: skip


def _write(
    folder: Path,
    source: ImageSource,
    codec: Codec,
    config: RunConfig,
    *,
    dtype: DtypeName,
    batch_size: int,
    shard_size: int,
    progress: Callable[[int], None],
) -> LatentCache:
    identity = _identity(source, codec, config, dtype, shard_size, _format_of(folder))
    if (folder / "manifest.json").is_file():
        cache = open_cache(str(folder))
        require_same_images(cache, config.data)
        for name, value in identity.items():
            if name not in ("source", "count"):
                require_same(cache, _SETTINGS.get(name, name), cache.manifest.get(name), value)
        require_same_data(folder, cache.manifest, source, "data.path")
        progress(len(cache))
        return cache
    _refuse_other_shards(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        Shard(folder / f"{number:05d}.npy", start, min(shard_size, len(source) - start))
        for number, start in enumerate(range(0, len(source), shard_size))
    ]
    notes = [shard.read_note(identity) for shard in shards]
    missing = [shard for shard, note in zip(shards, notes, strict=True) if note is None]
    tally = Tally(len(source), progress)
    tally.add(len(source) - sum(s.count for s in missing), sum(n["replaced"] for n in notes if n is not None))
    encoded = _encoded(source, codec, config.data, missing, batch_size, identity)
    for shard in missing:
        shard.write(encoded, identity, tally)
    _finish(folder, shards, config, identity, source)
    return open_cache(str(folder))


def _format_of(folder: Path) -> str:
    """The format of the cache in the folder, finished or not; the current format if there is none."""
    if (folder / "manifest.json").is_file():
        return open_cache(str(folder)).manifest["format"]
    notes = (read_note(file) for file in sorted(folder.glob("[0-9]*.json")))
    old = any(note is not None and note["content"].get("format") == OLD_FORMAT for note in notes)
    return OLD_FORMAT if old else FORMAT


def _refuse_other_shards(folder: Path, identity: dict[str, Any]) -> None:
    """Raises UserError if the folder holds finished shards of other settings. They may be hours of work, so
    they are never replaced."""
    for file in sorted(folder.glob("[0-9]*.json")):
        note = read_note(file)
        kept = identity if note is None else note["content"]
        for name, value in identity.items():
            if kept.get(name) != value:
                raise UserError(
                    f"{folder} holds shards of an unfinished cache made with {_SETTINGS.get(name, name)} = "
                    f"{kept.get(name)}, this run has {value}; delete the folder or give another --out"
                )


def _identity(
    source: ImageSource, codec: Codec, config: RunConfig, dtype: str, shard_size: int, version: str
) -> dict[str, Any]:
    """Everything on which the content of the shards depends; part of the manifest."""
    used = codec.config
    draws = codec.autoencoder is not None and used.latents == "sample"
    return {
        "format": version,
        "kind": used.kind,
        "autoencoder": codec.autoencoder_fingerprint or None,
        "latents": used.latents,
        "image_height": used.image_height,
        "image_width": used.image_width,
        "image_channels": used.image_channels,
        "latent_shape": list(codec.latent_shape),
        "source": fingerprint_like(version, source),
        "count": len(source),
        "flip": config.data.flip,
        "moments": 2 if draws else 1,
        "dtype": dtype,
        "shard_size": shard_size,
    }


class _Batches(Dataset):
    """A dataset of whole batches of images, for the workers of a `DataLoader`."""

    def __init__(self, source: ImageSource, data: DataConfig, batches: list[np.ndarray]) -> None:
        self.source, self.data, self.batches = source, data, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> tuple[Reads, np.ndarray] | UserError:
        """(images, hashes of their contents) of a batch, or the error that reading them raised. Arrays, as
        tensors would be sent through shared memory, which some containers lack."""
        indices = self.batches[place]
        try:
            reads = read_indices(self.source, indices, self.data)
            if not isinstance(self.source, TracedSource):
                return reads, np.empty((0, 16), np.uint8)
            return reads, content_hashes(self.source, indices.tolist())
        except UserError as error:  # returned, as a DataLoader would wrap a raised one in a traceback
            return error


def _encoded(
    source: ImageSource,
    codec: Codec,
    data: DataConfig,
    shards: list[Shard],
    batch_size: int,
    identity: dict[str, Any],
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """(batch, stored moments (B, variants, moments, c, h, w), hashes of contents (B or 0, 16)) of all images
    of these shards, in order. Raises UserError.

    A batch lies within one shard, so that batches are the same whether or not the run was interrupted.
    """
    batches = [
        np.arange(first, min(first + batch_size, shard.start + shard.count))
        for shard in shards
        for first in range(shard.start, shard.start + shard.count, batch_size)
    ]
    reader = _Batches(source, data, batches)
    expected = tuple(identity[f"image_{name}"] for name in ("channels", "height", "width"))
    loader = DataLoader(
        reader,
        batch_size=None,
        num_workers=data.num_workers,
        collate_fn=unchanged,
        worker_init_fn=leave_signals,
        generator=torch.Generator(),  # by default it would draw from the global generator
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        reads, hashes = found
        batch = batch_of(reads)
        if batch.images.shape[1:] != expected:
            raise UserError(
                f"image {int(batch.image_indices[0])} is {tuple(batch.images.shape[1:])} (channels, height, "
                f"width), the first image {expected}; expected one size: give --data.image-size"
            )
        images = batch.images.to(codec.device)
        variants = [images, images.flip(-1)] if identity["flip"] else [images]
        moments = [torch.stack(_moments(codec, variant, identity["moments"]), dim=1) for variant in variants]
        stored = _stored(torch.stack(moments, dim=1).float().cpu().numpy(), batch, identity["dtype"])
        yield batch, stored, hashes


def _moments(codec: Codec, images: torch.Tensor, number: int) -> list[torch.Tensor]:
    """[mean] of the raw latents, or [mean, standard deviation] for number = 2; each (B, c, h, w)."""
    mean, std = codec.moments(images)
    return [mean] if number == 1 or std is None else [mean, std]


def _stored(moments: np.ndarray, batch: Batch, dtype: str) -> np.ndarray:
    """The moments in the stored type. Raises UserError if they are not finite in it."""
    with np.errstate(over="ignore"):  # reported below
        stored = moments.astype(dtype)
    bad = ~np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
    if bad.any():
        do = "give --dtype float32" if np.isfinite(moments).all() else "check the autoencoder"
        image = int(batch.image_indices[np.flatnonzero(bad)[0]])
        raise UserError(f"the latents of image {image} are not finite numbers in {dtype}; {do}")
    return stored


def _finish(
    folder: Path, shards: list[Shard], config: RunConfig, identity: dict[str, Any], source: ImageSource
) -> None:
    """Write labels, captions and the manifest from the shards' notes, then remove the notes."""
    notes = [shard.read_note(identity) for shard in shards]
    whole = [note for note in notes if note is not None]
    if len(whole) < len(notes):
        raise UserError(f"{shards[notes.index(None)].file} changed while encoding; run encode again")
    labels = np.array([label for note in whole for label in note["labels"]], np.int64)
    captions = [texts for note in whole for texts in note["captions"]]
    write_whole(folder / "labels.npy", lambda stream: np.save(stream, labels))
    files = [folder / "labels.npy", *(shard.file for shard in shards)]
    if any(captions):
        lines = "".join(json.dumps(texts) + "\n" for texts in captions)
        files.append(folder / CAPTIONS)
        write_whole(folder / CAPTIONS, lines)
    hashes = b"".join(bytes.fromhex(note.get("contents", "")) for note in whole)
    if len(hashes) == 16 * len(labels):
        contents = np.frombuffer(hashes, np.uint8).reshape(-1, 16)
        files.append(folder / CONTENTS)
        write_whole(folder / CONTENTS, lambda stream: np.save(stream, contents))
    values = len(labels) * int(np.prod(identity["latent_shape"]))
    mean = sum(note["sum"] for note in whole) / values
    variance = sum(note["squares"] for note in whole) / values - mean**2
    drawn = variance + sum(note["variances"] for note in whole) / values
    if variance <= 1e-12:
        raise UserError(
            f"the latents do not vary (variance {variance:g}); check the images and the autoencoder"
        )
    classes: Classes | None = getattr(source, "classes", None)
    manifest = {
        **identity,
        "class_names": list(source.class_names),
        "class_numbers": None if classes is None or classes.numbers is None else classes.numbers.tolist(),
        "statistics": {"mean": mean, "mode_std": variance**0.5, "sample_std": drawn**0.5},
        "replaced_images": sum(note["replaced"] for note in whole),
        "shards": [shard.file.name for shard in shards],
        "files": {file.name: file.stat().st_size for file in files},
        "data": to_dict(config.data),
        "codec": to_dict(config.codec),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    write_whole(folder / "manifest.json", text)
    for shard in shards:
        shard.note_file.unlink()
