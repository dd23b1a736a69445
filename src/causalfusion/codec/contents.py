"""Checking that a latent cache was made from given data: by names, sizes and times, or by contents."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.codec.manifest import CONTENTS, OLD_FORMAT
from causalfusion.data.source import ImageSource, TracedSource, content_hashes
from causalfusion.errors import UserError, printable
from causalfusion.files import cache_folder, hash_of, map_array, write_whole
from causalfusion.machine.progress import ProgressLine

_BATCH = 64


def fingerprint_like(manifest_format: str, source: ImageSource) -> str:
    """The source's fingerprint as defined by this format of caches."""
    if manifest_format == OLD_FORMAT and isinstance(source, TracedSource):
        return source.sizes_fingerprint()
    return source.fingerprint()


def require_same_data(folder: Path, manifest: dict[str, Any], source: ImageSource, setting: str) -> None:
    """Raises UserError, naming the difference, unless the cache in `folder` was made from this data.

    If names, sizes or times differ, as for copied files, all contents are read and compared. That they are
    equal is then recorded in the user's cache folder.
    """
    found = fingerprint_like(manifest["format"], source)
    if found == manifest["source"]:
        return
    remedy = f"change {setting}, or encode again into another folder"
    if manifest["count"] != len(source):
        raise UserError(
            f"the cache {folder} was made of {manifest['count']:,} images, {printable(source.name)} has "
            f"{len(source):,}; {remedy}"
        )
    if CONTENTS not in manifest["files"] or not isinstance(source, TracedSource):
        raise UserError(
            f"the cache {folder} was made with {setting} (hash of the data) = {manifest['source']}, the run "
            f"has {found}; {remedy}"
        )
    try:
        kept = map_array(folder / CONTENTS)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{folder / CONTENTS} cannot be read ({error}); it is damaged: encode again"
        ) from None
    if kept.shape != (len(source), 16) or kept.dtype != np.uint8:
        raise UserError(f"{folder / CONTENTS} is {kept.dtype} of shape {kept.shape}; it is damaged")
    known = cache_folder("same-data") / hash_of([kept.tobytes().hex(), found])
    if known.is_file():
        return
    different = _different(source, kept, len(source))
    if different:
        raise UserError(
            f"{len(different):,} of {len(source):,} images of {printable(source.name)} are not those that "
            f"the cache {folder} was made of, the first {source.image_name(different[0])}; {remedy}"
        )
    with contextlib.suppress(OSError):  # without the record, they are compared again the next time
        write_whole(known, "")


def _different(source: TracedSource, kept: np.ndarray, count: int) -> list[int]:
    """Indices of the images whose contents differ from those in the cache."""
    line = ProgressLine(count, 0)
    found: list[int] = []
    try:
        for start in range(0, count, _BATCH):
            places = range(start, min(start + _BATCH, count))
            equal = (content_hashes(source, places) == kept[places.start : places.stop]).all(axis=1)
            found += [places[row] for row in np.flatnonzero(~equal).tolist()]
            line.show(places.stop, "compared with the cache")
    finally:
        line.close()
    return found
