"""References: what samples are compared with, as statistics and features that are made once and kept.

Statistics are of all images of the reference, the features themselves of at most `KEPT_FEATURES`: a Fréchet
distance needs no more, and neighbours are sought among 10,000 images in ADM's evaluation too.

Shape letters: N images, D numbers in a pooled feature, d in a spatial one, H, W, C pixels and channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extract import ExtractedFeatures, ExtractionSettings, extract_features
from causalfusion.evaluate.features.extractor import Extractor
from causalfusion.evaluate.measures.figure import is_inception
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.references.reference_file import ReferenceFile, read_reference, write_reference
from causalfusion.evaluate.samples.images import ImageSet, Shape, SourceImages, draw_places
from causalfusion.evaluate.samples.open_images import open_images
from causalfusion.files import cache_folder, hash_of

KEPT_FEATURES = 10_000
"""Images whose features are kept."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures:
    """A reference in the features of one extractor."""

    name: str
    fingerprint: str
    """Of the images: source, number, shape."""
    features: str
    features_fingerprint: str
    statistics: GaussianStatistics
    spatial: GaussianStatistics | None = None
    pool: np.ndarray | None = None
    """(N, D) float32 of the kept images; None where only statistics are known."""
    count: int | None = None
    """Images behind the statistics; None: a file of others does not say."""
    image_shape: Shape | None = None
    path: Path | None = None
    """The file that holds it."""

    def hash(self) -> str:
        """Of the statistics, to the last bit."""
        digest = hashlib.sha256()
        for statistics in (self.statistics, self.spatial):
            if statistics is not None:
                for array in (statistics.mean, statistics.covariance):
                    digest.update(np.ascontiguousarray(array, np.float64).tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """For a card."""
        return {
            "name": self.name,
            "features": self.features,
            "count": self.count,
            "image_shape": None if self.image_shape is None else list(self.image_shape),
            "kept": 0 if self.pool is None else len(self.pool),
            "fingerprint": self.fingerprint,
            "statistics_hash": self.hash(),
            "mean_norm": float(np.linalg.norm(self.statistics.mean)),
            "covariance_trace": float(np.trace(self.statistics.covariance)),
            "file": None if self.path is None else str(self.path),
        }


def reference_of(images: ImageSet, extractor: Extractor, batch_size: int = 64) -> ReferenceFeatures:
    """The features of a set of images, made in this process and kept in no file."""
    collected = _extract(images, extractor, ExtractionSettings(batch_size=batch_size))
    assert collected is not None, "there is one process"
    return _from_features(collected, images, extractor)


def open_reference(
    name: str,
    extractor: Extractor,
    shape: Shape,
    work: ExtractionSettings,
    *,
    count: int | None = None,
    cache: Path | None = None,
) -> ReferenceFeatures | None:
    """What `name` stands for, for samples of this shape: a file of statistics, or images, cropped and scaled
    to the samples' size as in training. On the main process; elsewhere it may be None.

    Made features are kept in the folder `cache` (or the user's), and found there the next time.
    """
    file = Path(name).expanduser()
    found = read_reference(file) if file.suffix == ".npz" and file.is_file() else None
    if found is not None:
        if count is not None:
            raise UserError(
                f"{name} holds statistics of all its images; leave --reference-images {count} out"
            )
        return _from_file(found, file, name, extractor, shape, work)
    images = _open_images(name, shape, count, work)
    key = hash_of([images.fingerprint(), extractor.fingerprint, KEPT_FEATURES])
    path = (cache or cache_folder("references")) / f"{key}.npz"
    kept = _read_cached(path)
    if kept is not None:
        return replace(_from_own_file(kept, path, extractor), name=name)
    collected = _extract(images, extractor, work)
    if collected is None:
        return None
    made = replace(_from_features(collected, images, extractor), name=name, path=path)
    write_reference(path, _to_file(made))
    return made


def _open_images(name: str, shape: Shape, count: int | None, work: ExtractionSettings) -> ImageSet:
    """The images, of the samples' shape; refused where they cannot be."""
    height, width, channels = shape
    images = open_images(
        name, image_size=height if height == width else 0, channels=channels, count=count,
        num_workers=work.num_workers, skip_damaged=True,
    )  # fmt: skip
    if isinstance(images, SourceImages) and min(images.native_shape[:2]) < min(height, width):
        native = "x".join(map(str, images.native_shape[1::-1]))
        raise UserError(
            f"the reference {name} has images of {native}, the samples are {width}x{height}; expected at "
            "least the samples' size: give the reference that they were trained on, or --image-size"
        )
    if images.shape != shape:
        native = images.native_shape if isinstance(images, SourceImages) else images.shape
        theirs, ours = ("{1}x{0} with {2} channels".format(*s) for s in (native, shape))
        raise UserError(
            f"the reference {name} has images of {theirs}, the samples {ours}; expected equal ones"
        )
    return images


def _extract(images: ImageSet, extractor: Extractor, work: ExtractionSettings) -> ExtractedFeatures | None:
    keep = None if len(images) <= KEPT_FEATURES else draw_places(len(images), KEPT_FEATURES)
    return extract_features(images, extractor, work, keep=keep)


def _from_features(collected: ExtractedFeatures, images: ImageSet, extractor: Extractor) -> ReferenceFeatures:
    return ReferenceFeatures(
        name=images.name,
        fingerprint=images.fingerprint(),
        features=extractor.name,
        features_fingerprint=extractor.fingerprint,
        statistics=collected.statistics,
        spatial=collected.spatial,
        pool=collected.pool,
        count=collected.count,
        image_shape=images.shape,
    )


def _to_file(reference: ReferenceFeatures) -> ReferenceFile:
    assert reference.image_shape is not None, "it was made of images"
    about = {
        "name": reference.name,
        "fingerprint": reference.fingerprint,
        "features": reference.features,
        "features_fingerprint": reference.features_fingerprint,
        "image_shape": list(reference.image_shape),
    }
    return ReferenceFile(about, reference.statistics, reference.spatial, reference.pool)


def _read_cached(path: Path) -> ReferenceFile | None:
    """A damaged one is made anew."""
    try:
        return read_reference(path) if path.is_file() else None
    except UserError:
        return None


def _from_file(
    found: ReferenceFile,
    file: Path,
    name: str,
    extractor: Extractor,
    shape: Shape,
    work: ExtractionSettings,
) -> ReferenceFeatures | None:
    if found.about is None:
        return _from_foreign_file(found, file, name, extractor, shape, work)
    reference = replace(_from_own_file(found, file, extractor), name=name)
    if reference.image_shape != shape:
        raise UserError(
            f"the reference {name} was made for images of shape {reference.image_shape}, the samples have "
            f"{shape}; expected equal ones: make it anew from its images"
        )
    return reference


def _from_own_file(found: ReferenceFile, path: Path, extractor: Extractor) -> ReferenceFeatures:
    assert found.about is not None, "the file says what it is of"
    about = found.about
    if about["features_fingerprint"] != extractor.fingerprint:
        raise UserError(
            f"the reference {path} was made with the features {about['features']} (fingerprint "
            f"{about['features_fingerprint']}), not with {extractor.name} ({extractor.fingerprint}); "
            "give its images instead"
        )
    height, width, channels = about["image_shape"]
    return ReferenceFeatures(
        name=about["name"],
        fingerprint=about["fingerprint"],
        features=about["features"],
        features_fingerprint=about["features_fingerprint"],
        statistics=found.statistics,
        spatial=found.spatial,
        pool=found.pool,
        count=found.statistics.count,
        image_shape=(height, width, channels),
        path=path,
    )


def _from_foreign_file(
    found: ReferenceFile,
    file: Path,
    name: str,
    extractor: Extractor,
    shape: Shape,
    work: ExtractionSettings,
) -> ReferenceFeatures | None:
    """ADM's files (mu, sigma, maybe mu_s, sigma_s, maybe arr_0): in Inception's features, as everywhere."""
    width = len(found.statistics.mean)
    if not is_inception(extractor.name):
        raise UserError(
            f"the reference {name} holds statistics of Inception features ({width} numbers), not of "
            f"{extractor.name}; give --features inception, or a reference of images"
        )
    _check_dim(found, name, extractor, shape)
    pool = None
    if found.has_images:
        images = _open_images(name, shape, None, work)
        collected = _extract(images, extractor, work)
        if collected is None:
            return None
        pool = collected.pool
    return ReferenceFeatures(
        name=name,
        fingerprint=hash_of([found.statistics.mean.tobytes().hex(), width]),
        features=extractor.name,
        features_fingerprint=extractor.fingerprint,
        statistics=found.statistics,
        spatial=found.spatial,
        pool=pool,
        path=file,
    )


def _check_dim(found: ReferenceFile, name: str, extractor: Extractor, shape: Shape) -> None:
    """Before hours of work: do the statistics have as many numbers as the features?"""
    probe = extractor(np.zeros((1, *shape), np.uint8))
    for statistics, values in ((found.statistics, probe.pool), (found.spatial, probe.spatial)):
        if statistics is not None and values is not None and statistics.dim != values.shape[1]:
            raise UserError(
                f"the reference {name} holds statistics of {statistics.dim} numbers, {extractor.name} gives "
                f"{values.shape[1]}; expected a reference made with these features"
            )
