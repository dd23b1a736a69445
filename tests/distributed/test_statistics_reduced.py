"""Features of images that 1, 2 and 3 processes share: one and the same statistics, in one order."""

from __future__ import annotations

from pathlib import Path

import jobs
import numpy as np
import pytest

from causalfusion.evaluate.features.extract import (
    ONE_PROCESS,
    ExtractedFeatures,
    ExtractionSettings,
    extract_features,
)
from causalfusion.evaluate.features.extractor import Features
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.samples.images import ArrayImages
from causalfusion.machine.processes import join_world

COUNT = 40


class Pixels:
    """Pixels, far from 0 beside their spread; a part of them as spatial features, and classes."""

    name, fingerprint, image_size = "own", "1", None

    def __call__(self, images: np.ndarray, /) -> Features:
        flat = images.reshape(len(images), -1).astype(np.float32)
        return Features(flat + 1000, spatial=flat[:, 2:5], logits=flat[:, :4])


def images() -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 3, 1), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(COUNT) % 10)


def share(folder: str, batch_size: int) -> ExtractedFeatures | None:
    """In each process of a world."""
    with join_world("cpu") as world:
        return extract_features(
            images(), Pixels(), ExtractionSettings(batch_size=batch_size, world=world, exchange=Path(folder))
        )


def check(statistics: GaussianStatistics | None, features: np.ndarray | None) -> None:
    assert statistics is not None and features is not None and statistics.count == COUNT
    expected = np.cov(features.astype(np.float64), rowvar=False)
    assert np.allclose(statistics.mean, features.astype(np.float64).mean(axis=0), rtol=1e-14, atol=0)
    assert abs(statistics.covariance - expected).max() <= 1e-12 * abs(expected).max()


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 7), (2, 7), (3, 7), (3, 24)])
def test_statistics_do_not_depend_on_the_number_of_processes(processes, batch_size, tmp_path):
    """With batches of 24 there are two: the last of three processes has none."""
    if processes == 1:
        found = extract_features(
            images(), Pixels(), ExtractionSettings(batch_size=batch_size, world=ONE_PROCESS)
        )
    else:
        found, *others = jobs.run(processes, share, str(tmp_path), batch_size)
        assert others == [None] * len(others), "features meet on the main process"
        assert not list(tmp_path.iterdir()), "what was exchanged is gone"
    assert found is not None
    whole = Pixels()(images().pixels)
    check(found.statistics, whole.pool)
    check(found.spatial, whole.spatial)
    assert (found.indices == np.arange(COUNT)).all() and (found.pool == whole.pool).all()
    assert (found.logits == whole.logits).all() and (found.labels == np.arange(COUNT) % 10).all()
    alone = extract_features(images(), Pixels(), ExtractionSettings())
    assert alone is not None and found.hash() == alone.hash()
