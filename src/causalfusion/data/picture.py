"""Decoding images: the only place where image files of users are opened.

Only the formats in `FORMATS` are tried, whatever a file is called: some of Pillow's others start programs.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from causalfusion.errors import printable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Pillow's names. Of an image with several frames or pages, the first is used."""
MAX_SIDE = 65_535
MAX_PIXELS = 2**27
"""Larger images are not decoded (400 MB as RGB)."""
MAX_FILE = 2**30
"""Bytes. Larger files and members are not read."""
ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")

T = TypeVar("T")


class UnreadableImage(Exception):
    """An image that cannot be decoded, or whose captions cannot be read; readers count and replace it."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{printable(name)}: {printable(reason)}")
        self.name = name


def decode_image(content: bytes, name: str) -> np.ndarray:
    """The pixels of an encoded image, (H, W, 3) uint8 RGB, rotated upright by its EXIF data. Grey and palette
    images are converted and transparency dropped (both as in ADM); 16 bits become 8. Raises
    UnreadableImage."""
    return _decode(content, name, _rgb)


def decode_native(content: bytes, name: str) -> np.ndarray:
    """Like `decode_image`, but (H, W, 1) for a grey image."""
    return _decode(content, name, lambda image: _rgb(image)[..., : 1 if image.mode in ("L", "1") else 3])


def decode_grey_alpha(content: bytes, name: str) -> np.ndarray:
    """A mask's pixels, (H, W, 2): grey and opacity (255 for an image without transparency), upright; uint8,
    or uint16 for a 16-bit image, whose values are kept. Raises UnreadableImage."""
    return _decode(content, name, _grey_alpha)


def orientation_of(content: bytes) -> int:
    """The EXIF orientation of an image that can be decoded: 1 is upright, 5 to 8 swap width and height."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata around good pixels: the default orientation
        return 1


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """(height, width) of an encoded image once it is upright, from its header alone. Raises
    UnreadableImage."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            width, height = image.size
    except Exception:  # what is wrong with it, decoding says best
        height, width = decode_image(content, name).shape[:2]
        return height, width
    return (width, height) if orientation_of(content) > 4 else (height, width)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file. Raises OSError, also for devices and pipes, without waiting for them,
    and for files larger than MAX_FILE."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"it is {kind_of(status.st_mode)}, not a file")
        if status.st_size > MAX_FILE:
            raise OSError(f"it has {status.st_size:,} bytes; expected at most {MAX_FILE:,}")
        return stream.read()


def kind_of(mode: int) -> str:
    """The kind of file that `st_mode` says, in words."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _decode(content: bytes, name: str, convert: Callable[[Image], T]) -> T:
    from PIL import Image, ImageOps, UnidentifiedImageError

    def attempt(content: bytes) -> T:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise ValueError(
                    f"it has {width}x{height} pixels; expected at most {MAX_SIDE:,} on a side and "
                    f"{MAX_PIXELS:,} in all"
                )
            if image.mode == "F" or (image.mode.startswith("I") and not _has_16_bits(image)):
                raise ValueError(
                    "its pixels are 32-bit numbers, whose range is not known; save it with 8 or 16 bits"
                )
            ImageOps.exif_transpose(image, in_place=True)
            return convert(image)

    try:
        try:
            return attempt(content)
        except ValueError:
            # Pillow refuses a PNG with a megabyte of text (such as a workflow), whose pixels are fine.
            if not content.startswith(_PNG):
                raise
            return attempt(_without_texts(content))
    except UnidentifiedImageError as error:
        kinds = ", ".join(kind for kind in FORMATS if kind != "MPO")
        raise UnreadableImage(name, f"it is damaged, or not an image ({kinds})") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _formats() -> list[str]:
    """The members of FORMATS that this installation of Pillow supports."""
    from PIL import Image

    Image.preinit()
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _has_16_bits(image: Image) -> bool:
    # Some versions of Pillow open a PNG of 16 bits as 32-bit integers.
    return image.mode.startswith("I;16") or image.format == "PNG"


def _rgb(image: Image) -> np.ndarray:
    if image.mode.startswith("I"):  # `convert` would clip 16-bit values at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info:  # Pillow warns about a direct conversion to RGB
        return np.array(image.convert("RGBA").convert("RGB"))
    return np.array(image.convert("RGB"))


def _grey_alpha(image: Image) -> np.ndarray:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint16)
        return np.stack([grey, np.full_like(grey, 255)], axis=-1)
    return np.array(image.convert("RGBA").convert("LA"))


def _without_texts(content: bytes) -> bytes:
    """A PNG without its text chunks and its colour profile."""
    kept, start = [content[:8]], 8
    while start + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if kind not in _PNG_TEXTS:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)
