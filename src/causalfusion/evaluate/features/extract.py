"""Features of a set of images: the processes of a world share the work, the main one gathers the features.

Shape letters: N images, D numbers in a pooled feature, K classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Extractor, Features
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.samples.images import ImageBatch, ImageSet
from causalfusion.files import write_whole
from causalfusion.machine.processes import World
from causalfusion.machine.progress import ProgressLine

ONE_PROCESS = World(0, 1, torch.device("cpu"))
_STATISTICS_NAMES = ("statistics", "spatial")
_ROWS = 4096
"""Features that are summed up at a time: merging a sum costs as much as adding D features."""


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """Division of the work. Features do not depend on it, except for rounding."""

    batch_size: int = 64
    num_workers: int = 0
    """Number of processes that read images for each process that computes features."""
    world: World = ONE_PROCESS
    exchange: Path | None = None
    """A folder that all processes of the world can reach; needed for more than one."""
    show_progress: bool = False


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of a set of images: statistics of all images, and the features of those that are kept."""

    statistics: GaussianStatistics
    """Statistics of the pooled features, of all images."""
    spatial: GaussianStatistics | None
    """Statistics of the spatial features; None where the extractor gives none."""
    indices: np.ndarray
    """Places of the kept images in the set, rising, (N,) int64."""
    pool: np.ndarray
    """Pooled features, (N, D) float32."""
    logits: np.ndarray | None
    """Logits, (N, K) float32; None where the extractor gives none."""
    labels: np.ndarray | None
    """Labels of the images, (N,) int64; None where they have none."""
    digests: np.ndarray
    """Hashes of the pixels, (N,) uint64."""

    @property
    def count(self) -> int:
        return self.statistics.count

    def hash(self) -> str:
        """16 hex digits that the pixels of all kept images decide."""
        return hashlib.sha256(self.digests.tobytes()).hexdigest()[:16]

    def num_repeated(self) -> int:
        """Number of kept images that are equal to an earlier one."""
        return len(self.digests) - len(np.unique(self.digests))


def extract_features(
    images: ImageSet,
    extractor: Extractor,
    settings: ExtractionSettings,
    *,
    kept_places: np.ndarray | None = None,
) -> ExtractedFeatures | None:
    """Features of the images, on the main process; None on the others. `kept_places` are the places whose
    features are kept, rising; None: all. Processes exchange their parts through files in `settings.exchange`,
    which are removed. Raises UserError for unreadable images and for features that are not finite."""
    world = settings.world
    running = {name: _StatisticsSum() for name in _STATISTICS_NAMES}
    parts: list[dict[str, np.ndarray]] = []
    progress = ProgressLine(len(images), 0, enabled=settings.show_progress and world.is_main)
    done = 0
    for batch in images.batches(settings.batch_size, rank=world.rank, world_size=world.size):
        features = extractor(batch.pixels)
        _check_features(features, extractor, len(batch.pixels))
        for name, values in (("statistics", features.pool), ("spatial", features.spatial)):
            if values is not None:
                running[name].add(values)
        parts.append(_kept_rows(batch, features, kept_places))
        done += len(batch.pixels)
        progress.show(min(done * world.size, len(images)), f"features {extractor.name} of {images.name}")
    progress.show(len(images), f"features {extractor.name} of {images.name}", force=done > 0)
    progress.close()
    arrays, statistics = _concatenated(parts), {name: sums.total() for name, sums in running.items()}
    if world.size > 1:
        assert settings.exchange is not None, "several processes meet in a folder"
        return _gather(arrays, statistics, settings.exchange, world)
    return _in_order(arrays, statistics, images.name)


def _kept_rows(
    batch: ImageBatch, features: Features, kept_places: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Arrays of the batch's images that are kept, under the names of `ExtractedFeatures`."""
    rows = np.arange(len(batch.indices))
    if kept_places is not None:
        rows = rows[np.isin(batch.indices, kept_places, assume_unique=True)]
    arrays = {"indices": batch.indices[rows], "pool": features.pool[rows]}
    arrays["digests"] = np.array([_digest(batch.pixels[row]) for row in rows], np.uint64)
    if features.logits is not None:
        arrays["logits"] = features.logits[rows]
    if batch.labels is not None:
        arrays["labels"] = batch.labels[rows]
    return arrays


def _digest(pixels: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")


def _check_features(features: Features, extractor: Extractor, count: int) -> None:
    pool = features.pool
    if pool.ndim != 2 or len(pool) != count or not np.isfinite(pool).all():
        raise UserError(
            f"the features {extractor.name} of {count} images have shape {pool.shape}, or are not finite; "
            "expected a row of numbers for each image"
        )


class _StatisticsSum:
    """Statistics of features that come in small batches."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._sum: GaussianStatistics | None = None

    def add(self, features: np.ndarray) -> None:
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= _ROWS:
            self.total()

    def total(self) -> GaussianStatistics | None:
        """Statistics of all features so far; None if there were none."""
        if self._waiting:
            self._sum = _merged(self._sum, GaussianStatistics.of(np.concatenate(self._waiting)))
            self._waiting = []
        return self._sum


def _merged(before: GaussianStatistics | None, new: GaussianStatistics) -> GaussianStatistics:
    return new if before is None else before.merged(new)


def _concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all batches, each name's joined into one."""
    names = parts[0].keys() if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _gather(
    arrays: dict[str, np.ndarray],
    statistics: dict[str, GaussianStatistics | None],
    folder: Path,
    world: World,
) -> ExtractedFeatures | None:
    """The features of all processes, on the main one, exchanged through files in a folder that all share."""
    content = dict(arrays)
    for name, values in statistics.items():
        if values is not None:
            content |= {
                f"{name}_count": np.array(values.count),
                f"{name}_mean": values.mean,
                f"{name}_scatter": values.scatter,
            }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        _exchange_file(folder, world.rank), lambda stream: np.savez(stream, allow_pickle=False, **content)
    )
    world.barrier()
    result = None
    if world.is_main:
        shares = [_read_part(_exchange_file(folder, rank)) for rank in range(world.size)]
        whole: dict[str, GaussianStatistics | None] = dict.fromkeys(_STATISTICS_NAMES)
        for _, theirs in shares:
            for name, values in theirs.items():
                whole[name] = _merged(whole[name], values)
        result = _in_order(_concatenated([own for own, _ in shares if own]), whole, str(folder))
    world.barrier()
    return result


def _exchange_file(folder: Path, rank: int) -> Path:
    return folder / f".features-{rank}.npz"


def _read_part(path: Path) -> tuple[dict[str, np.ndarray], dict[str, GaussianStatistics]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    path.unlink()
    statistics = {}
    for name in _STATISTICS_NAMES:
        if f"{name}_count" in arrays:
            count, mean, scatter = (arrays.pop(f"{name}_{part}") for part in ("count", "mean", "scatter"))
            statistics[name] = GaussianStatistics(int(count), mean, scatter)
    return arrays, statistics


def _in_order(
    arrays: dict[str, np.ndarray], statistics: dict[str, GaussianStatistics | None], name: str
) -> ExtractedFeatures:
    """The gathered features, sorted by place. Raises UserError where the set `name` has no readable image."""
    whole = statistics["statistics"]
    if whole is None:
        raise UserError(f"{name} holds no image that can be read")
    order = np.argsort(arrays["indices"])
    rows = {name: values[order] for name, values in arrays.items()}
    return ExtractedFeatures(
        statistics=whole,
        spatial=statistics["spatial"],
        indices=rows["indices"],
        pool=rows["pool"],
        logits=rows.get("logits"),
        labels=rows.get("labels"),
        digests=rows["digests"],
    )
