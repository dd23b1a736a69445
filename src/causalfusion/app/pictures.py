"""Pictures that users choose: files, read within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from causalfusion.codec.codec import Codec
from causalfusion.config.sizes import Fit
from causalfusion.data.picture import UnreadableImage, decode_image, read_file, size_of
from causalfusion.errors import UserError, brief, printable
from causalfusion.generate.read import fitted

LONGEST_SIDE = 12_000
MOST_PIXELS = 2**26
LARGEST_FILE = "50mb"
"""The server takes no larger one."""


def read_upload(path: str | Path, codec: Codec) -> np.ndarray:
    """(H, W, C) uint8: a user's picture, cropped and scaled to the model's size. Its size is read from the
    file's first bytes, so that a huge one is refused before it is decoded. Raises UserError."""
    name = printable(Path(path).name)
    try:
        content = read_file(path)
        height, width = size_of(content, name)
        if max(height, width) > LONGEST_SIDE or height * width > MOST_PIXELS:
            raise _too_large(name, f"{width:,} x {height:,}")
        pixels = decode_image(content, name)
    except UnreadableImage as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):  # Pillow does not open it at all
            raise _too_large(name, "far too many") from None
        reason = brief(error).removeprefix(f"{name}: ")
        raise UserError(f"the picture {name} cannot be read: {reason}") from None
    except OSError as error:
        raise UserError(f"the picture {name} cannot be read: {error.strerror or error}") from None
    config = codec.config
    fit = Fit(config.image_height, config.image_width)
    return codec.to_uint8(fitted(pixels, fit, config.image_channels, name)[None])[0]


def _too_large(name: str, many: str) -> UserError:
    return UserError(
        f"the picture {name} has {many} pixels; expected at most {LONGEST_SIDE:,} on a side and "
        f"{MOST_PIXELS // 10**6} million in all: make it smaller first"
    )
