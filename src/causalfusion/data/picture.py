"""From the bytes of a picture to pixels: the only place where pictures of users are opened.

Only the formats that are meant are tried, whatever a file is called: some of Pillow's others start programs.
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
"""Of several frames or pages, the first is taken."""
MAX_SIDE = 65_535
MAX_PIXELS = 2**27
"""A picture of more is not decoded (400 MB as RGB)."""
MAX_FILE = 2**30
"""Bytes of a file or member that may be a picture."""
_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")

T = TypeVar("T")


class UnreadableImage(Exception):
    """An image that cannot be decoded, or whose caption cannot be read: it is counted, named and skipped."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{printable(name)}: {printable(reason)}")
        self.name = name


def decode_image(content: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB from an encoded image, upright as its EXIF data say. Grey and palette images are
    converted, transparency is dropped (both as in ADM), 16 bits become 8. Raises UnreadableImage."""
    return _decode(content, name, _rgb)


def decode_native(content: bytes, name: str) -> np.ndarray:
    """Like `decode_image`, but (H, W, 1) for an image that is grey."""
    return _decode(content, name, lambda image: _rgb(image)[..., : 1 if image.mode in ("L", "1") else 3])


def decode_grey_alpha(content: bytes, name: str) -> np.ndarray:
    """(H, W, 2), grey (uint8, or uint16 of a picture of 16 bits, as it is) and opacity (255 where there is no
    transparency), upright: for masks."""
    return _decode(content, name, _grey_alpha)


def orientation_of(content: bytes) -> int:
    """EXIF's number for how a picture that can be decoded lies in its file: 1 is upright, 5 to 8 swap its
    sides."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of what surrounds the pixels: they can be read, so it says nothing
        return 1


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file; devices and pipes are refused, not waited for. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"it is {kind_of(status.st_mode)}, not a file")
        if status.st_size > MAX_FILE:
            raise OSError(f"it has {status.st_size:,} bytes; expected at most {MAX_FILE:,}")
        return stream.read()


def kind_of(mode: int) -> str:
    """A directory entry's kind, in words."""
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
            # A megabyte of text (a workflow, say) in a PNG is refused by Pillow: the pixels are fine.
            if not content.startswith(_PNG):
                raise
            return attempt(_without_texts(content))
    except UnidentifiedImageError as error:
        kinds = ", ".join(kind for kind in FORMATS if kind != "MPO")
        raise UnreadableImage(name, f"it is damaged, or not an image ({kinds})") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _formats() -> list[str]:
    """Those that this Pillow has."""
    from PIL import Image

    Image.preinit()
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _has_16_bits(image: Image) -> bool:
    # Some versions of Pillow open a PNG of 16 bits as 32-bit integers.
    return image.mode.startswith("I;16") or image.format == "PNG"


def _rgb(image: Image) -> np.ndarray:
    if image.mode.startswith("I"):  # `convert` would cut 16 bits off at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info:  # Pillow warns where it goes straight to RGB
        return np.array(image.convert("RGBA").convert("RGB"))
    return np.array(image.convert("RGB"))


def _grey_alpha(image: Image) -> np.ndarray:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint16)
        return np.stack([grey, np.full_like(grey, 255)], axis=-1)
    return np.array(image.convert("RGBA").convert("LA"))


def _without_texts(content: bytes) -> bytes:
    """A PNG without its texts and its colour profile."""
    kept, at = [content[:8]], 8
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if kind not in _PNG_TEXTS:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)
