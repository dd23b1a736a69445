"""Pictures of a user as a model's images: opened safely, upright, cropped and scaled as in training.

Shape letters: C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from causalfusion.config.sizes import Fit
from causalfusion.data.picture import UnreadableImage, decode_image, read_file
from causalfusion.data.transforms import fit_image
from causalfusion.errors import UserError, check, printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def read_picture(path: Path, what: str, decode: Callable[[bytes, str], np.ndarray]) -> np.ndarray:
    """A file's pixels. Raises UserError, one line that begins with `what`, for what is no picture."""
    try:
        return decode(read_file(path), str(path))
    except FileNotFoundError:
        raise UserError(f"{what} {printable(path)} does not exist") from None
    except UnreadableImage as error:
        reason = str(error).removeprefix(f"{printable(path)}: ")
        raise UserError(f"{what} {printable(path)} cannot be read: {reason}") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{what} {printable(path)} cannot be read: {reason}") from None


def read_image(path: Path, height: int, width: int, channels: int) -> Tensor:
    """(C, H, W) in [-1, 1] of an image file."""
    return read_fitted(path, Fit(height, width), channels)


def read_fitted(path: Path, fit: Fit, channels: int) -> Tensor:
    """(C, H, W) in [-1, 1] of an image file, brought to size. Raises UserError for one that is smaller than a
    token."""
    return fitted(read_picture(path, "image", decode_image), fit, channels, printable(path))


def image_of(picture: Picture, height: int, width: int, channels: int) -> Tensor:
    """(C, H, W) in [-1, 1] of a picture in Pillow's form."""
    from PIL import Image, ImageOps

    expected = "a picture of Pillow, a file, or a tensor (B, C, H, W) in [-1, 1] of all images"
    check(isinstance(picture, Image.Image), "an image", type(picture).__name__, expected)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F" or upright.mode.startswith("I"):
        raise UserError(f"a picture has mode {upright.mode}; expected 8 bits a channel: convert it to RGB")
    return fitted(np.array(upright.convert("RGB")), Fit(height, width), channels, "a picture")


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """The luminance (h, w, 1) of pixels (h, w, 3) uint8."""
    from PIL import Image

    return np.array(Image.fromarray(pixels).convert("L"))[..., None]


def fitted(pixels: np.ndarray, fit: Fit, channels: int, name: str) -> Tensor:
    """(C, H, W) in [-1, 1] of pixels (h, w, 3) uint8 of any size."""
    if channels == 1:
        pixels = to_grey(pixels)
    found = fit_image(pixels, fit)
    if found is None:
        raise UserError(
            f"image {name} has {pixels.shape[1]}x{pixels.shape[0]} pixels; expected at least one token, "
            f"{fit.cell}x{fit.cell}"
        )
    return to_float(found.reshape(1, *found.shape[:2], channels))[0]


def to_picture(pixels: np.ndarray) -> Picture:
    """Pillow's picture of one image (H, W, 1 or 3) uint8."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_float(images: np.ndarray) -> Tensor:
    """(n, C, H, W) in [-1, 1] from (n, H, W, C) uint8."""
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
