"""Which pixels an edit may change: named regions, a box, or a mask image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from causalfusion.config.sizes import Fit
from causalfusion.data.picture import ORIENTATION, decode_grey_alpha, decode_image, orientation_of, read_file
from causalfusion.data.transforms import fit_image
from causalfusion.errors import UserError, printable
from causalfusion.generate.read import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

REGIONS = ("center", "top", "bottom", "left", "right", "outside", "all")


def region_mask(region: str, height: int, width: int) -> Tensor:
    """(H, W) bool, True where pixels may change.

    center: the middle half of each side; outside: all but that; top, bottom, left, right: that half; all: the
    whole image; x,y,w,h: a box in pixels from the top left.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    if region in ("center", "outside"):
        mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return mask if region == "center" else ~mask
    parts = {
        "top": (slice(0, height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "all": (slice(None), slice(None)),
    }
    if region in parts:
        mask[parts[region]] = True
        return mask
    try:
        x, y, w, h = (int(part) for part in region.split(","))
    except ValueError:
        raise UserError(
            f"region {region!r} is unknown; expected one of {', '.join(REGIONS)}, or a box x,y,w,h in pixels"
        ) from None
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise UserError(f"region {region!r} does not lie within the {width}x{height} image")
    mask[y : y + h, x : x + w] = True
    return mask


@dataclass(frozen=True)
class Original:
    """How the picture that a mask belongs to lies in its file."""

    turned: tuple[int, int]
    """(height, width) of the upright picture."""
    orientation: int = 1
    """EXIF's: 1 is upright, 5 to 8 swap height and width."""

    @classmethod
    def of(cls, picture: Path | str | Picture) -> Original:
        """Of an image file, or of a picture in Pillow's form."""
        if isinstance(picture, str | Path):
            path = Path(picture)
            height, width = read_picture(path, "image", decode_image).shape[:2]
            return cls((height, width), orientation_of(read_file(path)))
        orientation = int(picture.getexif().get(ORIENTATION, 1))
        height, width = picture.height, picture.width
        return cls((width, height) if orientation > 4 else (height, width), orientation)


def read_mask(
    path: Path, height: int, width: int, original: Original | None = None, fit: Fit | None = None
) -> Tensor:
    """(H, W) bool from an image: bright pixels that are not transparent may change.

    Bright: at least half of what white is; in a mask of nothing but zeros and ones, the ones. The mask is
    turned as its EXIF data say. It has the size of the images of the model, or that of the original picture:
    then it is cropped and scaled with it (by `fit`, if the picture keeps its shape), and turned with it where
    it lies as that one is stored.
    """
    bright = bright_pixels(read_picture(path, "mask", decode_grey_alpha))
    return _fitted(bright, printable(path), height, width, original, fit)


def mask_of(picture: Picture, height: int, width: int, original: Original | None = None) -> Tensor:
    """(H, W) bool of a mask in Pillow's form, as `read_mask` takes it."""
    from PIL import ImageOps

    content = io.BytesIO()
    try:
        ImageOps.exif_transpose(picture).save(content, "PNG")
    except OSError:
        raise UserError(f"the mask has mode {picture.mode}; expected L, 1, RGB or RGBA") from None
    bright = bright_pixels(decode_grey_alpha(content.getvalue(), "the mask"))
    return _fitted(bright, "a picture", height, width, original, None)


def mask_of_numbers(mask: Tensor | np.ndarray) -> Tensor:
    """(H, W) bool of a mask as numbers: True where pixels may change; others count as in a mask image, of
    zeros and ones or up to white."""
    found = torch.as_tensor(mask)
    if found.dtype == torch.bool:
        return found
    grey = found.detach().cpu().double().numpy()
    return torch.from_numpy(bright_pixels(np.stack([grey, np.full_like(grey, 255)], axis=-1)))


def _fitted(
    bright: np.ndarray, name: str, height: int, width: int, original: Original | None, fit: Fit | None
) -> Tensor:
    if original is not None and original.orientation > 4 and bright.shape == original.turned[::-1]:
        bright = _turned(bright, original.orientation)
    mask = bright
    if bright.shape != (height, width):
        sizes = [(height, width)]  # the images of the model
        sizes += [original.turned] if original is not None else []
        if bright.shape not in sizes:
            raise UserError(
                f"mask {name} has {bright.shape[1]}x{bright.shape[0]} pixels; expected "
                + " or ".join(dict.fromkeys(f"{w}x{h}" for h, w in sizes))
            )
        fitted = fit_image(bright.astype(np.uint8)[..., None] * 255, fit or Fit(height, width))
        assert fitted is not None, "the picture has tokens"
        mask = fitted[..., 0] >= 128
    if not mask.any():
        where = "none is left where the picture is cropped" if bright.any() else "it has none"
        raise UserError(
            f"the mask is empty in {name}: bright pixels (at least half of white) that are not "
            f"transparent may change, and {where}"
        )
    return torch.from_numpy(np.ascontiguousarray(mask))


def bright_pixels(grey_alpha: np.ndarray) -> np.ndarray:
    """(H, W) bool of grey and opacity (H, W, 2): bright, and not transparent."""
    grey, opaque = grey_alpha[..., 0], grey_alpha[..., 1] >= 128
    highest = grey[opaque].max(initial=0)
    white = 1 if highest <= 1 else 255 if highest <= 255 else 65535
    return (grey >= white / 2) & opaque


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) upright, from what is stored in this EXIF orientation, 5 to 8."""
    pixels = pixels.T  # as 5; the others are mirrored from there
    if orientation in (6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (7, 8) else pixels
