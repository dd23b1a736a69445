"""References that samples are compared with: statistics and features of images, made once and kept in a file.

Statistics cover all images of a reference, features at most `KEPT_FEATURES` of them: a Fréchet distance needs
only statistics, and ADM's evaluation too looks for neighbours among 10,000 images.

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
"""Largest number of images whose features are kept."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures:
    """A reference in the features of one extractor."""

    name: str
    fingerprint: str
    """Hash of the images' source, number and shape."""
    features: str
    """Name of the feature space."""
    features_fingerprint: str
    statistics: GaussianStatistics
    """Statistics of the pooled features, of all images."""
    spatial: GaussianStatistics | None = None
    """Statistics of the spatial features; None where there are none."""
    pool: np.ndarray | None = None
    """Pooled features of the kept images, (N, D) float32; None where only statistics are known."""
    count: int | None = None
    """Number of images behind the statistics; None where a foreign file does not tell."""
    image_shape: Shape | None = None
    """Shape of the images; None where a foreign file does not tell."""
    path: Path | None = None
    """The file that holds the reference; None where there is none."""

    def hash(self) -> str:
        """16 hex digits that every bit of the statistics decides."""
        digest = hashlib.sha256()
        for statistics in (self.statistics, self.spatial):
            if statistics is not None:
                for array in (statistics.mean, statistics.covariance):
                    digest.update(np.ascontiguousarray(array, np.float64).tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """Facts about the reference, for a card."""
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
    """A reference made from a set of images in this process, without a file."""
    extracted = _extract(images, extractor, ExtractionSettings(batch_size=batch_size))
    assert extracted is not None, "there is one process"
    return _from_features(extracted, images, extractor)


def open_reference(
    name: str,
    extractor: Extractor,
    shape: Shape,
    settings: ExtractionSettings,
    *,
    count: int | None = None,
    cache: Path | None = None,
) -> ReferenceFeatures | None:
    """The reference of this name for samples of this shape: a file of statistics, or images that are cropped
    and scaled to the samples' size as in training. It is returned on the main process; others may get None.

    Statistics and features of images are kept in the folder `cache` (default: the user's cache) and found
    there the next time. Raises UserError where there is no such reference, or where it does not fit.
    """
    file = Path(name).expanduser()
    found = read_reference(file) if file.suffix == ".npz" and file.is_file() else None
    if found is not None:
        if count is not None:
            raise UserError(
                f"{name} holds statistics of all its images; leave --reference-images {count} out"
            )
        return _from_file(found, file, name, extractor, shape, settings)
    images = _open_images(name, shape, count, settings)
    key = hash_of([images.fingerprint(), extractor.fingerprint, KEPT_FEATURES])
    path = (cache or cache_folder("references")) / f"{key}.npz"
    kept = _read_cached(path)
    if kept is not None:
        return replace(_from_own_file(kept, path, extractor), name=name)
    extracted = _extract(images, extractor, settings)
    if extracted is None:
        return None
    made = replace(_from_features(extracted, images, extractor), name=name, path=path)
    write_reference(path, _to_file(made))
    return made


def _open_images(name: str, shape: Shape, count: int | None, settings: ExtractionSettings) -> ImageSet:
    """Images of the samples' shape. Raises UserError where they are smaller or have other channels."""
    height, width, channels = shape
    images = open_images(
        name,
        image_size=(height, width),
        channels=channels,
        count=count,
        num_workers=settings.num_workers,
        skip_damaged=True,
    )
    small = isinstance(images, SourceImages) and (
        images.native_shape[0] < height or images.native_shape[1] < width
    )
    if isinstance(images, SourceImages) and small:
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


def _extract(
    images: ImageSet, extractor: Extractor, settings: ExtractionSettings
) -> ExtractedFeatures | None:
    """Features of the images. Where there are too many to keep, a fixed random choice of them is kept."""
    kept = None if len(images) <= KEPT_FEATURES else draw_places(len(images), KEPT_FEATURES)
    return extract_features(images, extractor, settings, kept_places=kept)


def _from_features(extracted: ExtractedFeatures, images: ImageSet, extractor: Extractor) -> ReferenceFeatures:
    return ReferenceFeatures(
        name=images.name,
        fingerprint=images.fingerprint(),
        features=extractor.name,
        features_fingerprint=extractor.fingerprint,
        statistics=extracted.statistics,
        spatial=extracted.spatial,
        pool=extracted.pool,
        count=extracted.count,
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
    """The file's content; None if it is missing or damaged, so that it is made anew."""
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
    settings: ExtractionSettings,
) -> ReferenceFeatures | None:
    if found.about is None:
        return _from_foreign_file(found, file, name, extractor, shape, settings)
    reference = replace(_from_own_file(found, file, extractor), name=name)
    if reference.image_shape != shape:
        raise UserError(
            f"the reference {name} was made for images of shape {reference.image_shape}, the samples have "
            f"{shape}; expected equal ones: make it anew from its images"
        )
    return reference


def _from_own_file(found: ReferenceFile, path: Path, extractor: Extractor) -> ReferenceFeatures:
    assert found.about is not None, "an own file describes itself"
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
    settings: ExtractionSettings,
) -> ReferenceFeatures | None:
    """A reference from a file of ADM's kind (mu, sigma, maybe mu_s, sigma_s, maybe arr_0), which holds
    Inception features by convention."""
    width = len(found.statistics.mean)
    if not is_inception(extractor.name):
        raise UserError(
            f"the reference {name} holds statistics of Inception features ({width} numbers), not of "
            f"{extractor.name}; give --features inception, or a reference of images"
        )
    _check_dim(found, name, extractor, shape)
    pool = None
    if found.has_images:
        images = _open_images(name, shape, None, settings)
        extracted = _extract(images, extractor, settings)
        if extracted is None:
            return None
        pool = extracted.pool
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
    """Raises UserError, before hours of work, unless statistics and features have equally many numbers."""
    probe = extractor(np.zeros((1, *shape), np.uint8))
    for statistics, values in ((found.statistics, probe.pool), (found.spatial, probe.spatial)):
        if statistics is not None and values is not None and statistics.dim != values.shape[1]:
            raise UserError(
                f"the reference {name} holds statistics of {statistics.dim} numbers, {extractor.name} gives "
                f"{values.shape[1]}; expected a reference made with these features"
            )
