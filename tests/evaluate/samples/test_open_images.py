"""From a name to images; and a reference whose pictures changed is another reference."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extract import ExtractionSettings
from causalfusion.evaluate.features.pixels import PixelsExtractor
from causalfusion.evaluate.references.reference import open_reference
from causalfusion.evaluate.samples.open_images import data_config, open_images


def write(folder, shades):
    folder.mkdir(exist_ok=True)
    for number, shade in enumerate(shades):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / f"{number}.bmp")


def test_a_reference_whose_pictures_changed_is_made_anew(tmp_path):
    photos, cache = tmp_path / "photos", tmp_path / "cache"

    def mean() -> float:
        found = open_reference(str(photos), PixelsExtractor(4), (8, 8, 3), ExtractionSettings(), cache=cache)
        assert found is not None
        return float(np.max(found.statistics.mean))

    write(photos, [10, 20, 30])
    first = mean()
    assert mean() == first and len(list(cache.iterdir())) == 1
    times = {file: file.stat().st_mtime_ns for file in photos.iterdir()}
    write(photos, [110, 120, 130])  # of the same names and sizes
    for file, before in times.items():
        os.utime(file, ns=(before, before + 1))
    assert mean() > 3 * first
    assert len(list(cache.iterdir())) == 2


def test_kinds_of_images(tmp_path):
    write(tmp_path / "photos", [1])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").touch()
    for name, source in (("photos", "folder"), ("shards", "webdataset"), ("shards/*.tar", "webdataset")):
        assert data_config(str(tmp_path / name)).source == source
    assert data_config("shapes:test").split == "test" and data_config("digits").source == "digits"
    with pytest.raises(UserError, match="does not exist; expected digits, shapes"):
        data_config(str(tmp_path / "nowhere"))
    (tmp_path / "photos" / "settings.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"settings\.json is not valid JSON"):
        open_images(str(tmp_path / "photos"))
