"""Writing a latent cache, shard by shard; `codec/cache.py` describes its files.

An interrupted run continues after the finished shards of the same settings. The manifest is written last;
then the shards' notes are removed.

Shape letters: B images, C image channels, H and W pixels, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from causalfusion.codec.blocks import num_values
from causalfusion.codec.cache import LatentCache, open_cache, require_same, require_same_images
from causalfusion.codec.codec import Codec
from causalfusion.codec.contents import fingerprint_like, require_same_data
from causalfusion.codec.encoded import encoded_batches
from causalfusion.codec.for_source import open_codec_for
from causalfusion.codec.manifest import CAPTIONS, CONTENTS, FORMAT, FORMAT_OF_SIZES, OLD_FORMAT, SIZES
from causalfusion.codec.shard import Shard, Tally, read_note
from causalfusion.config import RunConfig
from causalfusion.config.serialize import to_dict
from causalfusion.data import ImageSource, open_source
from causalfusion.data.class_captions import ClassCaptions
from causalfusion.data.folder import require_elsewhere
from causalfusion.data.labels import Classes
from causalfusion.data.sizes import grids_of
from causalfusion.errors import UserError, printable
from causalfusion.files import hash_of, in_use, write_whole
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.runtime import select_device

SHARD_SIZE = 4096
"""Images in a shard: few files to open, and little work lost when a run is interrupted."""

_SETTINGS = {
    "kind": "codec (pixels or autoencoder)",
    "autoencoder": "codec.autoencoder (hash of the weights)",
    "latents": "codec.latents",
    "flip": "data.flip",
    "source": "data.path (hash of the data)",
    "words": "data.captions class_names (hash of the words of each class)",
}
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
        raise UserError(f"--batch-size is {batch_size}; expected at least 1")
    if run.data.cache:
        raise UserError(f"data.cache is {run.data.cache!r}; encode reads images: leave it out")
    require_elsewhere(out, run.data)
    source = open_source(run.data)
    codec = open_codec_for(source, run.data, run.codec).to(select_device(device))
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
            folder,
            source,
            codec,
            config,
            dtype=dtype,
            batch_size=batch_size,
            shard_size=shard_size,
            progress=progress,
        )


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
    version = FORMAT_OF_SIZES if config.data.native else _format_of(folder)
    identity = _identity(source, codec, config, dtype, shard_size, version)
    if (folder / "manifest.json").is_file():
        cache = open_cache(str(folder))
        require_same_images(cache, config.data)
        made = cache.manifest["data"].get("captions", "own")
        require_same(cache, "data.captions", made, config.data.captions)
        for name, value in identity.items():
            kept = cache.manifest.get(name)
            told = name not in ("source", "count") and (name != "words" or kept)
            if told:  # of which words a cache of earlier versions has, it does not say
                require_same(cache, _SETTINGS.get(name, name), kept, value)
        require_same_data(folder, cache.manifest, source, "data.path")
        progress(len(cache))
        return cache
    _refuse_other_shards(folder, identity)
    _refuse_other_files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fit, sizes = config.data.fit(codec.cell), None
    if config.data.native:
        sizes = grids_of(source, fit, show_progress=True) * codec.config.patch_size
    shards = [
        Shard(
            folder / f"{number:05d}.npy",
            start,
            min(shard_size, len(source) - start),
            None if sizes is None else sizes[start : start + shard_size],
        )
        for number, start in enumerate(range(0, len(source), shard_size))
    ]
    notes = [shard.read_note(identity) for shard in shards]
    missing = [shard for shard, note in zip(shards, notes, strict=True) if note is None]
    tally = Tally(len(source), progress)
    tally.add(len(source) - sum(s.count for s in missing), sum(n["replaced"] for n in notes if n is not None))
    encoded = encoded_batches(source, codec, config.data, missing, batch_size, identity, sizes)
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
        for name in {**identity, **kept}:
            if kept.get(name) != identity.get(name):
                raise UserError(
                    f"{folder} holds shards of an unfinished cache made with {_SETTINGS.get(name, name)} = "
                    f"{kept.get(name)}, this run has {identity.get(name)}; delete the folder or give another "
                    "--out"
                )


def _refuse_other_files(folder: Path) -> None:
    """Raises UserError if the folder holds other things than an unfinished cache, which a cache's files could
    replace. A shard without its note may be what a stopped run left."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    others = [name for name in names if not re.fullmatch(r"\d{5}\.npy", name)]
    if others and not any(re.fullmatch(r"\d{5}\.json", name) for name in names):
        raise UserError(
            f"{folder} holds other things than a cache ({printable(min(others))}); give another --out"
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
        **({"max_area": used.max_area, "patch_size": used.patch_size} if used.max_area else {}),
        "source": fingerprint_like(version, source),
        **({"words": hash_of(source.words)} if isinstance(source, ClassCaptions) else {}),
        "count": len(source),
        "flip": config.data.flip,
        "moments": 2 if draws else 1,
        "dtype": dtype,
        "shard_size": shard_size,
    }


def _in_order(
    shards: list[Shard], notes: list[dict[str, Any]]
) -> tuple[np.ndarray, list[list[str]], np.ndarray | None]:
    """Labels (images,), captions and, where there are any, hashes of contents (images, 16), in the order of
    the images; 0, none and zeros for images that are left out."""
    count = sum(shard.count for shard in shards)
    labels, captions = np.zeros(count, np.int64), [[] for _ in range(count)]
    contents = np.zeros((count, 16), np.uint8)
    hashed = True
    for shard, note in zip(shards, notes, strict=True):
        stored, hashes = shard.stored, bytes.fromhex(note.get("contents", ""))
        labels[stored] = note["labels"]
        for index, texts in zip(stored.tolist(), note["captions"], strict=True):
            captions[index] = texts
        if len(hashes) == 16 * len(stored):
            contents[stored] = np.frombuffer(hashes, np.uint8).reshape(-1, 16)
        else:
            hashed = False
    return labels, captions, contents if hashed else None


def _finish(
    folder: Path, shards: list[Shard], config: RunConfig, identity: dict[str, Any], source: ImageSource
) -> None:
    """Write labels, captions and the manifest from the shards' notes, then remove the notes."""
    notes = [shard.read_note(identity) for shard in shards]
    whole = [note for note in notes if note is not None]
    if len(whole) < len(notes):
        raise UserError(f"{shards[notes.index(None)].file} changed while encoding; run encode again")
    labels, captions, hashes = _in_order(shards, whole)
    write_whole(folder / "labels.npy", lambda stream: np.save(stream, labels))
    files = [folder / "labels.npy", *(shard.file for shard in shards)]
    if any(captions):
        lines = "".join(json.dumps(texts) + "\n" for texts in captions)
        files.append(folder / CAPTIONS)
        write_whole(folder / CAPTIONS, lines)
    if hashes is not None:
        files.append(folder / CONTENTS)
        write_whole(folder / CONTENTS, lambda stream: np.save(stream, hashes))
    values = len(labels) * int(np.prod(identity["latent_shape"]))
    if identity.get("max_area"):
        sizes = np.concatenate([shard.sizes for shard in shards if shard.sizes is not None])
        files.append(folder / SIZES)
        write_whole(folder / SIZES, lambda stream: np.save(stream, sizes))
        values = num_values(sizes, identity["latent_shape"][0])
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
