"""Which pixels an edit may change: named regions, a box, or a mask image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from causalfusion.data.transforms import center_crop
from causalfusion.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_ORIENTATION = 0x0112
"""EXIF's number for it."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

REGIONS = ("center", "top", "bottom", "left", "right", "outside")


def region_mask(region: str, height: int, width: int) -> Tensor:
    """(H, W) bool, True where pixels may change.

    center: the middle half of each side; outside: all but that; top, bottom, left, right: that half;
    x,y,w,h: a box in pixels from the top left.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    if region in ("center", "outside"):
        mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return mask if region == "center" else ~mask
    halves = {
        "top": (slice(0, height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width // 2, None)),
    }
    if region in halves:
        mask[halves[region]] = True
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

    width: int
    height: int
    """As it is stored, before it is turned upright."""
    orientation: int = 1
    """EXIF's: 1 is upright, 5 to 8 swap width and height."""

    @classmethod
    def of(cls, path: Path) -> Original:
        with opened(path, "image") as image:
            return cls(*image.size, image.getexif().get(_ORIENTATION, 1))

    @property
    def turned(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        return (self.height, self.width) if self.orientation in (5, 6, 7, 8) else (self.width, self.height)


def read_mask(path: Path, height: int, width: int, original: Original | None = None) -> Tensor:
    """(H, W) bool from an image: bright pixels that are not transparent may change.

    Bright: at least half of what white is; in a mask of nothing but zeros and ones, the ones. The mask is
    turned as its EXIF data say. It has the size of the images of the model, or that of the original picture:
    then it is cropped and scaled with it, and turned with it where it lies as that one is stored.
    """
    with opened(path, "mask") as image:
        own = image.getexif().get(_ORIENTATION, 1)
        bright = bright_pixels(image, str(path))
    if original is not None and own == 1 and bright.shape == (original.height, original.width):
        bright = _turned(bright, original.orientation) if original.turned != bright.shape[::-1] else bright
    else:
        bright = _turned(bright, own)
    mask = bright
    if bright.shape != (height, width):
        sizes = [(width, height)]  # the images of the model
        sizes += [original.turned] if original is not None and height == width else []
        if bright.shape[::-1] not in sizes:
            raise UserError(
                f"mask {path} has {bright.shape[1]}x{bright.shape[0]} pixels; expected "
                + " or ".join(dict.fromkeys(f"{w}x{h}" for w, h in sizes))
            )
        mask = center_crop(bright.astype(np.uint8)[..., None] * 255, height)[..., 0] >= 128
    if not mask.any():
        where = "none is left where the picture is cropped" if bright.any() else "it has none"
        raise UserError(
            f"the mask is empty in {path}: bright pixels (at least half of white) that are not transparent "
            f"may change, and {where}"
        )
    return torch.from_numpy(np.ascontiguousarray(mask))


def bright_pixels(image: Picture, name: str) -> np.ndarray:
    """(H, W) bool of an image as it is stored: bright, and not transparent."""
    opaque = None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        opaque = np.asarray(image.getchannel("A")) >= 128
    if image.mode[0] in "IF":
        values = np.asarray(image).astype(np.float64)
    else:
        values = np.asarray(image.convert("L")).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"mask {name} has values that are not numbers; expected 0 and 1, or greys")
    seen = values if opaque is None else values[opaque]
    highest = seen.max(initial=0)
    white = 1 if highest <= 1 else 255 if highest <= 255 else 65535
    bright = values >= white / 2
    return bright if opaque is None else bright & opaque


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) upright, from what is stored in this EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T  # as 5; the others are mirrored from there
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


@contextmanager
def opened(path: Path, what: str) -> Iterator[Picture]:
    """A picture file, decoded. Raises UserError, one line, for what is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            yield image
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{what} {path} cannot be read: it is damaged, or not an image") from None
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{what} {path} cannot be read: {reason}") from None
