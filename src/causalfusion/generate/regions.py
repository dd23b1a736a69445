"""Which pixels an edit may change: named regions, a box, or a mask image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from causalfusion.errors import UserError

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


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """(H, W) bool from an image of the same size: bright pixels (>= 128 in grey) may change."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            grey = np.array(image.convert("L"))
    except FileNotFoundError:
        raise UserError(f"mask {path} does not exist") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"mask {path} cannot be read as an image: {error}") from None
    if grey.shape != (height, width):
        raise UserError(
            f"mask {path} has {grey.shape[1]}x{grey.shape[0]} pixels; expected the image's {width}x{height}"
        )
    return torch.from_numpy(grey >= 128)
