"""Pictures of users: read within bounds, painted on, and refused in one line."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.app.opened import Opened
from causalfusion.app.painter import LONGEST_PAINTING, painted_mask, painter
from causalfusion.app.pictures import read_upload
from causalfusion.app.tiles import data_uri
from causalfusion.errors import UserError


def painting(height: int, width: int, *boxes: tuple[int, int, int, int]) -> str:
    """What the canvas gives where boxes (top, left, bottom, right) are painted."""
    painted = np.zeros((height, width, 4), np.uint8)
    for top, left, bottom, right in boxes:
        painted[top:bottom, left:right] = 200
    stream = io.BytesIO()
    Image.fromarray(painted).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def test_a_picture_is_read_as_the_commands_read_it(shapes: Opened, digits: Opened, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / "a picture.png")
    read = read_upload(path, shapes.pipeline.codec)
    expected = shapes.pipeline.codec.to_uint8(shapes.pipeline.to_tensor(path))[0]
    assert read.shape == (32, 32, 3) and np.array_equal(read, expected)
    assert read_upload(path, digits.pipeline.codec).shape[2] == 1


@pytest.mark.parametrize(
    ("size", "many"), [((20_000, 20_000), "far too many"), ((20_000, 10), "20,000 x 10")]
)
def test_a_picture_of_20000_pixels_a_side_is_refused_before_it_is_decoded(
    shapes: Opened, tmp_path: Path, size: tuple[int, int], many: str
):
    Image.new("1", size).save(path := tmp_path / "huge.png")
    begin = time.perf_counter()
    with pytest.raises(UserError) as refused:
        read_upload(path, shapes.pipeline.codec)
    assert time.perf_counter() - begin < 1
    assert str(refused.value) == (
        f"the picture huge.png has {many} pixels; expected at most 12,000 on a side and 67 million in all: "
        "make it smaller first"
    )


def test_what_is_no_picture_is_refused_in_one_line(shapes: Opened, tmp_path: Path):
    (text := tmp_path / "notes.png").write_text("hello\n")
    Image.new("RGB", (64, 64), "red").save(cut := tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:60])
    for path in (text, cut, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=f"the picture {path.name} cannot be read") as refused:
            read_upload(path, shapes.pipeline.codec)
        assert "\n" not in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_paint_becomes_the_pixels_that_it_half_covers():
    mask = painted_mask(painting(512, 512, (16, 32, 64, 128)), 32, 32)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[1:4, 2:8] = True
    assert torch.equal(mask, expected)
    half = painted_mask(painting(64, 64, (0, 0, 3, 2), (0, 2, 1, 3)), 32, 32)
    assert half.nonzero().tolist() == [[0, 0], [1, 0]], "a quarter of a pixel is not painted"


def test_fine_strokes_count():
    fine = painted_mask(painting(512, 512, (100, 7, 101, 9)), 32, 32)
    assert fine.nonzero().tolist() == [[6, 0]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "choose a picture, or draw one first"),
        ("", "choose a picture, or draw one first"),
        (painting(8, 8), "nothing is painted; paint over the part"),
        ("data:image/png;base64,????", "the painting cannot be read"),
        ("data:image/png;base64,aGVsbG8=", "the painting cannot be read"),
        ("http://elsewhere/mask.png", "the painting is no PNG"),
        ("data:image/png;base64," + "A" * LONGEST_PAINTING, "the painting is no PNG"),
    ],
)
def test_what_is_no_painting_is_refused_in_one_line(given, words):
    with pytest.raises(UserError, match=words) as refused:
        painted_mask(given, 32, 32)
    assert "\n" not in str(refused.value)


def test_the_canvas_has_whole_squares_for_pixels():
    pixels = np.zeros((24, 32, 3), np.uint8)
    html = painter(pixels)
    assert '<canvas width="512" height="384">' in html and data_uri(pixels) in html
    assert '<canvas width="20" height="600">' in painter(np.zeros((600, 20, 1), np.uint8))
