"""Absolute error, PSNR and SSIM: closed forms, and SSIM against its definition written out."""

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.similarity import (
    absolute_error,
    peak_signal_to_noise,
    structural_similarity,
)


def images(seed, shape=(3, 17, 14, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_closed_forms():
    black, grey = np.zeros((2, 8, 8, 1), np.uint8), np.full((2, 8, 8, 1), 51, np.uint8)
    assert absolute_error(black, grey) == pytest.approx([0.2, 0.2])
    assert peak_signal_to_noise(grey, black) == pytest.approx([20 * np.log10(5)] * 2)
    # Constant images: only the luminance term is left.
    c1 = (0.01 * 255) ** 2
    assert structural_similarity(black, grey) == pytest.approx([c1 / (51**2 + c1)] * 2)


def test_equal_images():
    same = images(0)
    assert not absolute_error(same, same).any()
    assert structural_similarity(same, same) == pytest.approx([1, 1, 1])
    changed = same.copy()
    changed[0, 0, 0, 0] ^= 1
    assert peak_signal_to_noise(same, same)[0] == peak_signal_to_noise(changed, same)[0] < 100


def test_structural_similarity_is_its_definition():
    x, y = images(1), images(2)
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for channel in range(3):
        for top in range(17 - 10):
            for left in range(14 - 10):
                a, b = (z[0, top : top + 11, left : left + 11, channel].astype(float) for z in (x, y))
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = 2.55**2, 7.65**2
                found.append(
                    (2 * mean_a * mean_b + c1) * (2 * both + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )  # fmt: skip
    assert structural_similarity(x, y)[0] == pytest.approx(np.mean(found))


def test_small_images_have_smaller_windows():
    assert structural_similarity(images(1, (2, 4, 6, 1)), images(1, (2, 4, 6, 1))) == pytest.approx([1, 1])


@pytest.mark.parametrize("measure", [absolute_error, peak_signal_to_noise, structural_similarity])
def test_other_arrays_are_refused(measure):
    with pytest.raises(UserError, match=r"expected two of \(B, H, W, C\) uint8"):
        measure(images(0), images(0)[:2])
    with pytest.raises(UserError, match="float"):
        measure(images(0) / 255, images(0) / 255)
