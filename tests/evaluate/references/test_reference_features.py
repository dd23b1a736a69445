"""References: made once, found again, refused where they are of something else."""

from pathlib import Path

import numpy as np
import pytest

from causalfusion.data.digits import Digits
from causalfusion.errors import UserError
from causalfusion.evaluate.features.extract import ExtractionSettings, extract_features
from causalfusion.evaluate.features.extractor import Features
from causalfusion.evaluate.measures.frechet import gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.references import reference as reference_module
from causalfusion.evaluate.references.reference import ReferenceFeatures, open_reference, reference_of
from causalfusion.evaluate.references.reference_file import read_reference
from causalfusion.evaluate.samples.images import ArrayImages

WORK = ExtractionSettings(batch_size=64)


class Counting:
    """Pixels as features; counts the images it was given."""

    image_size = None

    def __init__(self, name: str = "own", spatial: bool = False) -> None:
        self.name, self.fingerprint, self.spatial, self.seen = name, f"{name}-1", spatial, 0

    def __call__(self, images: np.ndarray, /) -> Features:
        self.seen += len(images)
        pool = (images.reshape(len(images), -1) / 255).astype(np.float32)
        return Features(pool, spatial=pool[:, :5] if self.spatial else None)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    data = Digits()
    return np.stack([data.read(index).image for index in range(len(data))])


def opened(name: str | Path, extractor, tmp_path, shape=(8, 8, 1), **options) -> ReferenceFeatures:
    found = open_reference(str(name), extractor, shape, WORK, cache=tmp_path / "cache", **options)
    assert found is not None
    return found


def test_made_once_and_found_again(digits, tmp_path):
    extractor = Counting(spatial=True)
    made = opened("digits", extractor, tmp_path)
    assert extractor.seen == len(digits) == made.count
    again = opened("digits", extractor, tmp_path)
    assert extractor.seen == len(digits), "found in the cache"
    assert again.hash() == made.hash() and again.facts() == made.facts()
    flat = digits.reshape(len(digits), -1).astype(np.float64) / 255
    assert np.allclose(again.statistics.mean, flat.mean(0))
    assert np.allclose(again.statistics.covariance, np.cov(flat, rowvar=False))
    assert again.spatial is not None and np.allclose(again.spatial.mean, flat[:, :5].mean(0))
    assert again.pool is not None and np.allclose(again.pool, flat)
    assert opened("digits", Counting("another"), tmp_path).hash() != ""
    assert len(list((tmp_path / "cache").iterdir())) == 2, "one file for each of the features"


def test_a_damaged_cache_is_made_anew(tmp_path):
    extractor = Counting()
    made = opened("digits", extractor, tmp_path, count=50)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:300])
    assert opened("digits", extractor, tmp_path, count=50).hash() == made.hash() and extractor.seen == 100


def test_features_are_kept_of_some_images_statistics_of_all(digits, monkeypatch):
    monkeypatch.setattr(reference_module, "KEPT_FEATURES", 40)
    made = reference_of(ArrayImages(digits[:300]), Counting())
    assert made.count == 300 and made.pool is not None and made.pool.shape == (40, 64)
    assert np.allclose(made.statistics.mean, digits[:300].reshape(300, -1).mean(0) / 255)
    assert made.facts()["kept"] == 40


def test_a_file_of_ours_says_what_it_is_of(tmp_path):
    made = opened("digits", Counting(), tmp_path, count=60)
    file = made.path
    assert file is not None and opened(file, Counting(), tmp_path).hash() == made.hash()
    with pytest.raises(
        UserError, match=r"was made with the features own .* not with another .* give its images"
    ):
        opened(file, Counting("another"), tmp_path)
    with pytest.raises(UserError, match=r"was made for images of shape \(8, 8, 1\)"):
        opened(file, Counting(), tmp_path, shape=(16, 16, 1))
    with pytest.raises(UserError, match="leave --reference-images 9 out"):
        opened(file, Counting(), tmp_path, count=9)


def test_adm_statistics(digits, tmp_path):
    """mu and sigma as given; neighbours from the images beside them."""
    flat = digits[:100].reshape(100, -1) / 255
    path = tmp_path / "reference.npz"
    arrays = {"mu": flat.mean(0), "sigma": np.cov(flat, rowvar=False)}
    np.savez(path, **arrays, mu_s=arrays["mu"][:5], sigma_s=arrays["sigma"][:5, :5])
    found = opened(path, Counting("inception"), tmp_path)
    assert found.count is None and found.pool is None and found.spatial is not None
    assert np.allclose(found.statistics.covariance, arrays["sigma"])
    assert gaussian_frechet_distance(found.statistics, GaussianStatistics.of(flat)) == pytest.approx(
        0, abs=1e-9
    )
    with pytest.raises(UserError, match=r"holds statistics of Inception features .* not of own"):
        opened(path, Counting(), tmp_path)
    narrow = {"mu": arrays["mu"][:9], "sigma": arrays["sigma"][:9, :9]}
    np.savez(path, **narrow)
    with pytest.raises(UserError, match="holds statistics of 9 numbers, inception gives 64"):
        opened(path, Counting("inception"), tmp_path)
    np.savez(path, **arrays, mu_s=narrow["mu"], sigma_s=narrow["sigma"])
    with pytest.raises(UserError, match="holds statistics of 9 numbers, inception gives 5"):
        opened(path, Counting("inception", spatial=True), tmp_path)
    np.savez(path, **arrays, arr_0=digits[:30])
    with_images = opened(path, Counting("inception"), tmp_path)
    assert with_images.pool is not None and with_images.pool.shape == (30, 64)
    for broken, message in (
        ({"mu": arrays["mu"], "sigma": arrays["sigma"][:3]}, r"expected \(D,\) and \(D, D\)"),
        ({"mu": arrays["mu"] * np.nan, "sigma": arrays["sigma"]}, "is not finite"),
    ):
        np.savez(path, **broken)
        with pytest.raises(UserError, match=message):
            read_reference(path)
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cannot be read as .npz"):
        read_reference(path)


def test_a_reference_of_other_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="has images of 8x8, the samples are 32x32; expected at least"):
        opened("digits", Counting(), tmp_path, shape=(32, 32, 3))
    with pytest.raises(UserError, match="16x16 with 3 channels, the samples 16x16 with 1 channels"):
        opened("shapes:test", Counting(), tmp_path, shape=(16, 16, 1), count=3)


def test_larger_images_are_scaled_and_grey_ones_take_three_channels(tmp_path):
    assert opened("digits", Counting(), tmp_path, shape=(4, 4, 3), count=20).image_shape == (4, 4, 3)


def test_damaged_images_of_a_reference_are_left_out(tmp_path, digits):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(150):
        Image.fromarray(digits[index, :, :, 0]).save(folder / f"{index:03d}.png")
    (folder / "007.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"007.png"):
        found = opened(folder, Counting(), tmp_path, shape=(8, 8, 3))
    assert found.count == 149


def test_equal_images_are_counted_and_told_apart(digits):
    images = np.concatenate([digits[:10], digits[:3]])
    collected = extract_features(ArrayImages(images), Counting(), WORK)
    other = extract_features(ArrayImages(images[::-1].copy()), Counting(), WORK)
    assert collected is not None and other is not None
    assert collected.num_repeated() == 3 and collected.hash() != other.hash()
