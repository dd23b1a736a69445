"""Pictures as users have them: other formats, texts in them, odd sizes, numbers of 16 and 32 bits."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from causalfusion.data.picture import (
    UnreadableImage,
    decode_grey_alpha,
    decode_image,
    decode_native,
    read_file,
)
from causalfusion.data.transforms import crop_to


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noisy(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_formats_without_loss_are_read_to_the_bit(kind):
    image = noisy("P") if kind == "GIF" else noisy()
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(
        decode_image(encoded(image, kind, **options), "x"), np.asarray(image.convert("RGB"))
    )


def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (200, 100, 0)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(content, kind) == [200, 0, 0]).all(), kind


def test_postscript_called_png_is_not_run():
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(UnreadableImage, match=r"photo\.png: it is damaged, or not an image"):
        decode_image(content, "photo.png")


def test_megabytes_of_text_in_a_png_do_not_make_it_unreadable():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    info.add_itxt("prompt", "y" * 2_000_000, zip=True)
    image = noisy()
    assert np.array_equal(decode_image(encoded(image, "PNG", pnginfo=info), "x"), np.asarray(image))


def test_16_bits_are_scaled_and_32_bits_refused():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    deep = Image.fromarray(values)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode_image(encoded(deep, kind), "x")[..., 0], values >> 8)
    for wide in (Image.fromarray(values.astype(np.int32)), Image.fromarray(values.astype(np.float32))):
        with pytest.raises(UnreadableImage, match="32-bit numbers, whose range is not known; save it with 8"):
            decode_image(encoded(wide, "TIFF"), "x")


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG of this size; its pixels are never reached."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + head
    data = b"IDAT" + zlib.compress(b"\0")
    pieces = [b"\x89PNG\r\n\x1a\n"]
    for part in (chunk, data, b"IEND"):
        pieces += [(len(part) - 4).to_bytes(4, "big"), part, zlib.crc32(part).to_bytes(4, "big")]
    return b"".join(pieces)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(170_000_000, 1), (1, 70_000), (12_000, 12_000)])
def test_pictures_of_endless_size_are_refused_before_they_are_decoded(size):
    with pytest.raises(UnreadableImage, match=rf"it has {size[0]}x{size[1]} pixels; expected at most 65,535"):
        decode_image(png_of(*size), "x")


def test_a_strip_is_cropped_before_it_is_scaled():
    strip = np.zeros((1, 20_000, 3), np.uint8)
    strip[:, 9_990:10_010] = 255
    assert crop_to(strip, 256, 256).shape == (256, 256, 3)
    assert (crop_to(strip, 256, 256) == 255).all()
    assert (crop_to(strip.transpose(1, 0, 2), 256, 256) == 255).all()


def test_masks_have_grey_and_opacity():
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[1:3, :, 3] = 255
    pixels[1, :, :3] = 0
    expected = np.stack([pixels[..., 0], pixels[..., 3]], axis=-1)
    assert np.array_equal(decode_grey_alpha(encoded(Image.fromarray(pixels), "PNG"), "m"), expected)
    plain = decode_grey_alpha(encoded(noisy("L"), "PNG"), "m")
    assert np.array_equal(plain[..., 0], np.asarray(noisy("L"))) and (plain[..., 1] == 255).all()
    assert decode_native(encoded(noisy("L"), "PNG"), "m").shape == (8, 8, 1)
    assert decode_native(encoded(noisy(), "PNG"), "m").shape == (8, 8, 3)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "directory")):
        with pytest.raises(OSError, match=kind):
            read_file(path)
    (tmp_path / "a.png").write_bytes(b"123")
    os.symlink(tmp_path / "a.png", tmp_path / "b.png")
    assert read_file(tmp_path / "b.png") == b"123"
