"""Files of reference statistics: own ones, which describe themselves, and foreign ones (ADM's), which do not.

    mu, sigma, mu_s, sigma_s     means and covariances of pooled and spatial features (ADM's names)
    features                     pooled features of some of the images; only in own files
    about                        JSON: names and fingerprints of images and features; only in own files
    arr_0                        some of the images; only in ADM's files

Shape letters: N images, D numbers in a pooled feature, d in a spatial one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from causalfusion.config.serialize import from_dict
from causalfusion.data.npz_file import NpzFile
from causalfusion.errors import UserError, check, printable
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.files import write_whole

FORMAT = "causalfusion-reference-1"
_UNKNOWN_COUNT = 2
"""Stands for the number of images of a foreign file: the covariance then equals the scatter."""


@dataclass(frozen=True, kw_only=True)
class _About:
    """Self-description of an own file."""

    format: str
    count: int
    name: str
    fingerprint: str
    features: str
    features_fingerprint: str
    image_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        check(2 <= self.count < 2**53, "count", self.count, "2 or more")


@dataclass(frozen=True)
class ReferenceFile:
    about: dict[str, Any] | None
    """Self-description; None in a foreign file."""
    statistics: GaussianStatistics
    spatial: GaussianStatistics | None
    pool: np.ndarray | None
    """Pooled features, (N, D) float32."""
    has_images: bool = False
    """The file holds some images of the reference too, as ADM's files do."""


def write_reference(path: Path, reference: ReferenceFile) -> None:
    """Write an own file, whole or not at all."""
    assert reference.about is not None, "an own file describes itself"
    about = {"format": FORMAT, "count": reference.statistics.count, **reference.about}
    arrays = {
        "about": np.array(json.dumps(about)),
        "mu": reference.statistics.mean,
        "sigma": reference.statistics.covariance,
    }
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    if reference.pool is not None:
        arrays["features"] = reference.pool
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def read_reference(path: Path) -> ReferenceFile | None:
    """The content of a reference file; None for a file without statistics, such as one of images. Raises
    UserError for a damaged file."""
    file = NpzFile(path)
    if "mu" not in file:
        return None
    try:
        about = json.loads(str(file["about"])) if "about" in file else None
        of_others = "about" not in file
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)}: `about` is not valid JSON ({error}); it is damaged") from None
    arrays = {
        name: np.array(file[name]) for name in ("mu", "sigma", "mu_s", "sigma_s", "features") if name in file
    }
    has_images = "arr_0" in file
    count = _UNKNOWN_COUNT if of_others else _check_about(about, path).count
    if "features" in arrays:
        pool = arrays["features"]
        if pool.ndim != 2 or pool.dtype.kind != "f" or not np.isfinite(pool).all():
            raise UserError(f"{printable(path)}: features are no rows of finite numbers; it is damaged")
    return ReferenceFile(
        about=about,
        statistics=_gaussian(arrays, "mu", "sigma", count, path),
        spatial=_gaussian(arrays, "mu_s", "sigma_s", count, path) if "mu_s" in arrays else None,
        pool=arrays.get("features"),
        has_images=has_images,
    )


def _check_about(about: object, path: Path) -> _About:
    if not isinstance(about, dict):
        raise UserError(f"{printable(path)}: `about` is no JSON object; it is damaged")
    if about.get("format") != FORMAT:
        raise UserError(f"{printable(path)} is a reference of another format than {FORMAT}; make it anew")
    try:
        return from_dict(_About, about)
    except UserError as error:
        raise UserError(f"{printable(path)}: about.{error}; make it anew") from None


def _gaussian(
    arrays: dict[str, np.ndarray], mean_name: str, covariance_name: str, count: int, path: Path
) -> GaussianStatistics:
    mean = arrays[mean_name]
    covariance = arrays.get(covariance_name, np.empty(0))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: {mean_name} has shape {mean.shape}, {covariance_name} {covariance.shape}; expected "
            "(D,) and (D, D)"
        )
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise UserError(f"{path}: {mean_name} or {covariance_name} holds no numbers; the file is damaged")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {mean_name} or {covariance_name} is not finite; the file is damaged")
    return GaussianStatistics.from_covariance(count, mean, covariance)
