"""Damaged images: counted, named once, replaced by readable ones; more than 1 % of them stop the run."""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.data.folder import ImageFolder
from causalfusion.data.loader import Loader
from causalfusion.data.reader import Health
from causalfusion.data.source import UnreadableImage, decode_image
from causalfusion.errors import UserError


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noisy(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path):
    """A folder of tiny images of two classes, the first ones damaged."""

    def make(count: int, damaged: int) -> ImageFolder:
        for number in range(count):
            image = Image.new("RGB", (4, 4), (number % 256, 0, 0))
            place = tmp_path / "ab"[number % 2] / f"{number:04d}.png"
            place.parent.mkdir(exist_ok=True)
            content = encoded(image, "PNG")
            place.write_bytes(content[: len(content) // 2] if number < damaged else content)
        return ImageFolder(str(tmp_path))

    return make


def run(source: ImageFolder, epochs: int, workers: int = 0) -> tuple[Loader, list[int], list[str]]:
    """The loader after these epochs, the places read, and the warnings."""
    loader = Loader(source, DataConfig(num_workers=workers), seed=0, batch_size=len(source) // 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(itertools.islice(loader.iterate(0), 4 * epochs))
    return loader, [i for b in batches for i in b.image_indices.tolist()], [str(w.message) for w in caught]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_kind_of_cut_file_is_unreadable(kind):
    content = encoded(noisy(), kind)
    assert decode_image(content, "whole").shape == (64, 64, 3)
    # Pillow reads the head of a cut file without complaint: the pixels have to be asked for.
    for damaged in (content[:-200], content[: len(content) // 2], content[:10], b"", b"not an image" * 9):
        with pytest.raises(UnreadableImage, match="shelf/7"):
            decode_image(damaged, "shelf/7")


def test_images_of_every_mode_become_rgb():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(grey[..., None], 3, axis=2)
    palette = Image.fromarray(expected).quantize(256, dither=Image.Dither.NONE)
    transparent = np.concatenate([expected, 255 - expected[..., :1]], axis=2)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    images = [Image.fromarray(grey), palette, Image.fromarray(transparent), deep]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in images:
            assert np.array_equal(decode_image(encoded(image, "PNG"), image.mode), expected), image.mode
        stream = io.BytesIO()
        palette.save(stream, "PNG", transparency=bytes(range(256)))
        assert np.array_equal(decode_image(stream.getvalue(), "palette with alpha"), expected)
    two = np.array([[0, 255]] * 2, bool)
    assert decode_image(encoded(Image.fromarray(two), "PNG"), "1 bit")[0].tolist() == [[0] * 3, [255] * 3]


def test_photo_on_its_side_is_set_upright():
    image, stream = noisy(16).resize((16, 8)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise
    image.save(stream, "PNG", exif=exif)
    upright = np.rot90(np.asarray(image), -1)
    assert np.array_equal(decode_image(stream.getvalue(), "photo"), upright)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_percent_is_counted_named_once_and_replaced(folder, workers):
    loader, read, messages = run(folder(200, 2), epochs=3, workers=workers)
    assert set(loader.health.bad) == {0, 100}  # a/0000.png; b/0001.png
    assert len(read) == 600 and not {0, 100} & set(read)
    skipped = [m for m in messages if m.startswith("skipped an image that cannot be read")]
    assert len(skipped) == 2 and "(2 so far)" in skipped[1]
    assert any("a/0000.png: " in m for m in skipped) and any("b/0001.png: " in m for m in skipped)
    # Each epoch has every readable image, and two of them again.
    assert all(len(set(read[e * 200 : (e + 1) * 200])) >= 196 for e in range(3))
    assert set(read) == set(range(200)) - {0, 100}


@pytest.mark.parametrize(("count", "damaged", "allowed"), [(800, 9, 8), (200, 6, 5), (16, 5, 4), (8, 3, 2)])
@pytest.mark.filterwarnings("ignore:skipped an image")
def test_too_many_stop(folder, count, damaged, allowed):
    found = (
        rf"{damaged} of {count} images cannot be read, more than {allowed}: .*000\d\.png.*remove or repair"
    )
    with pytest.raises(UserError, match=found):
        run(folder(count, damaged), epochs=1)


@pytest.mark.filterwarnings("ignore:skipped an image")
def test_stops_in_a_worker_too_and_where_nothing_can_be_read(folder):
    source = folder(48, 48)
    for workers in (0, 1):
        with pytest.raises(UserError, match="none of 100 images tried can be read"):
            run(source, epochs=1, workers=workers)


@pytest.mark.filterwarnings("ignore:skipped an image")
def test_health_waits_for_certainty_but_not_for_a_whole_epoch():
    health = Health(10_000)
    health.note(100, [(n, "x") for n in range(5)])  # 5 of the first 105, of 10,000: may be all there are
    with pytest.raises(UserError, match=r"\d+ of 1\d\d images cannot be read"):
        health.note(20, [(n, "x") for n in range(5, 30)])  # a quarter: no need to meet 100
    health = Health(10_000)
    health.note(5_000, [(n, "x") for n in range(100)])
    with pytest.raises(UserError, match="101 of 10000 images"):
        health.note(50, [(100, "x")])


def test_images_of_several_sizes_need_a_size(tmp_path):
    for number, side in enumerate((4, 4, 6)):
        Image.new("RGB", (side, 5)).save(tmp_path / f"{number}.png")
    source = ImageFolder(str(tmp_path))
    with pytest.raises(
        UserError, match=r"image \d is \dx5 with 3 channels.*expected one size.*data\.image-size"
    ):
        next(Loader(source, DataConfig(), seed=0, batch_size=3).iterate(0))
    batch = next(Loader(source, DataConfig(image_size=4), seed=0, batch_size=3).iterate(0))
    assert batch.images.shape == (3, 3, 4, 4) and batch.labels.tolist() == [0, 0, 0]
