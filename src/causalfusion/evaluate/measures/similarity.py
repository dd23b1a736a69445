"""Similarity of images to the images that they should equal: absolute error, PSNR and SSIM, of each image.

Shape letters: B images, H, W, C pixels and channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from causalfusion.errors import UserError

Images = NDArray[np.uint8]
PEAK = 255.0
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def absolute_error(ours: Images, theirs: Images) -> NDArray[np.float64]:
    """Mean absolute difference of pixels, (B,), black being 0 and white 1, of images (B, H, W, C)."""
    _check(ours, theirs)
    return np.abs(ours.astype(np.float64) - theirs).mean(axis=(1, 2, 3)) / PEAK


def peak_signal_to_noise(ours: Images, theirs: Images) -> NDArray[np.float64]:
    """PSNR in dB, (B,), of images (B, H, W, C). Equal images, whose PSNR is infinite, count as if one of
    their numbers differed by 1."""
    _check(ours, theirs)
    squares = np.square(ours.astype(np.float64) - theirs).mean(axis=(1, 2, 3))
    return 10 * np.log10(PEAK**2 / np.maximum(squares, 1 / ours[0].size))


def structural_similarity(ours: Images, theirs: Images) -> NDArray[np.float64]:
    """SSIM (Wang et al., 2004), (B,), of images (B, H, W, C): Gaussian windows of 11 pixels, sigma 1.5, that
    lie within the image, or of the largest odd side that does; the mean over windows and channels."""
    from scipy.ndimage import correlate1d

    _check(ours, theirs)
    x, y = ours.astype(np.float64), theirs.astype(np.float64)
    side = min(_WINDOW, *x.shape[1:3])
    reach = (side - 1) // 2
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / _SIGMA))
    kernel /= kernel.sum()

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred = correlate1d(correlate1d(values, kernel, axis=1), kernel, axis=2)
        height, width = values.shape[1:3]
        return blurred[:, reach : height - reach, reach : width - reach]

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * PEAK) ** 2, (_K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(axis=(1, 2, 3))


def _check(ours: Images, theirs: Images) -> None:
    same = ours.shape == theirs.shape and ours.ndim == 4
    if not same or ours.dtype != np.uint8 or theirs.dtype != np.uint8:
        raise UserError(
            f"images are {ours.dtype} {ours.shape} and {theirs.dtype} {theirs.shape}; expected two of "
            "(B, H, W, C) uint8"
        )
