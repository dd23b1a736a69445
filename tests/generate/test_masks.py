"""Masks as people have them: transparent, of zeros and ones, deep, turned, of the picture's own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import read_image
from causalfusion.generate.regions import Original, read_mask

ROWS = np.zeros((32, 32), bool)
ROWS[8:16] = True


def rgba(alpha: np.ndarray, colour: int = 255) -> Image.Image:
    pixels = np.full((32, 32, 4), colour, np.uint8)
    pixels[..., 3] = alpha * 255
    return Image.fromarray(pixels)


def palette() -> Image.Image:
    image = Image.fromarray(ROWS.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def grey_alpha() -> Image.Image:
    return Image.merge("LA", [Image.new("L", (32, 32), 255), Image.fromarray(ROWS.astype(np.uint8) * 255)])


MASKS = {
    "transparent.png": rgba(ROWS),
    "grey-transparent.png": grey_alpha(),
    "grey.png": Image.fromarray(ROWS.astype(np.uint8) * 255),
    "ones.png": Image.fromarray(ROWS.astype(np.uint8)),
    "bool.png": Image.fromarray(ROWS),
    "palette.png": palette(),
    "deep.png": Image.fromarray(ROWS.astype(np.uint16) * 65535),
    "deep-255.png": Image.fromarray(ROWS.astype(np.uint16) * 255),
    "deep-ones.png": Image.fromarray(ROWS.astype(np.uint16)),
    "colour.png": Image.fromarray(np.repeat(ROWS[..., None], 3, 2).astype(np.uint8) * 200),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_says_the_same(name, tmp_path):
    MASKS[name].save(tmp_path / name)
    assert torch.equal(read_mask(tmp_path / name, 32, 32), torch.from_numpy(ROWS))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (rgba(ROWS, colour=0), "the mask is empty in .*not transparent"),
        (Image.new("L", (32, 32)), "the mask is empty"),
        (Image.fromarray(np.full((32, 32), 100, np.uint8)), "the mask is empty.*at least half of white"),
        (Image.new("L", (32, 16), 255), "has 32x16 pixels; expected 32x32$"),
        (
            Image.fromarray(np.full((32, 32), np.nan, np.float32)),
            "32-bit.*save it with 8 or 16",
        ),
    ],
)
def test_a_mask_that_says_nothing_is_refused(image, message, tmp_path):
    path = tmp_path / ("mask.tif" if image.mode == "F" else "mask.png")
    image.save(path)
    with pytest.raises(UserError, match=message):
        read_mask(path, 32, 32)


def test_what_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "post.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("text.png", "post.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read: it is damaged, or not an image"):
            read_mask(tmp_path / name, 32, 32)
    with pytest.raises(UserError, match=r"mask .*gone.png does not exist"):
        read_mask(tmp_path / "gone.png", 32, 32)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_mask(tmp_path, 32, 32)


def save_turned(pixels: np.ndarray, path: Path, orientation: int) -> None:
    """Stored as it is, with a note to turn it."""
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_scaled_and_cropped_as_its_picture(orientation, tmp_path):
    """A mask with the EXIF data of the picture, or without, stored as the picture is or as it is shown."""
    stored = np.zeros((60, 100, 3), np.uint8)
    stored[10:30, 20:60] = 255
    save_turned(stored, tmp_path / "photo.png", orientation)
    photo = read_image(tmp_path / "photo.png", 20, 20, 3)
    expected = photo[0] > 0
    original = Original.of(tmp_path / "photo.png")
    upright = np.asarray(Image.open(tmp_path / "photo.png"))
    from PIL import ImageOps

    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photo.png")))
    save_turned(stored[..., 0], tmp_path / "with.png", orientation)
    Image.fromarray(shown[..., 0]).save(tmp_path / "shown.png")
    given = ["with.png", "shown.png"]
    if orientation > 4:  # else nothing tells how it lies
        Image.fromarray(upright[..., 0]).save(tmp_path / "stored.png")
        given.append("stored.png")
    for name in given:
        assert torch.equal(read_mask(tmp_path / name, 20, 20, original), expected), name
    assert original.turned == shown.shape[:2]


def test_a_mask_of_the_models_size_is_of_the_cropped_picture(tmp_path):
    Image.new("RGB", (100, 60)).save(tmp_path / "photo.png")
    Image.fromarray(ROWS.astype(np.uint8)).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 32, 32, Original.of(tmp_path / "photo.png"))
    assert torch.equal(mask, torch.from_numpy(ROWS))
    with pytest.raises(UserError, match="has 32x32 pixels; expected 64x64 or 100x60"):
        read_mask(tmp_path / "mask.png", 64, 64, Original.of(tmp_path / "photo.png"))


def test_a_mask_of_numbers_says_what_the_same_mask_of_truth_values_says():
    """Of whole numbers the complement was taken bit by bit: masked tokens were context, too, in silence."""
    pipeline, once = Pipeline.load("shapes"), SampleConfig(sampler="dpm++", diffusion_steps=[1])
    image = torch.zeros(1, 3, 32, 32)
    expected = pipeline.edit(image, ROWS, config=once, prompts=["a red circle"])
    for mask in (
        ROWS.astype(np.uint8),
        ROWS.astype(np.uint8) * 255,
        torch.from_numpy(ROWS).float(),
        torch.from_numpy(ROWS).long(),
        torch.from_numpy(ROWS).bfloat16() * 0.75,
    ):
        assert torch.equal(pipeline.edit(image, mask, config=once, prompts=["a red circle"]), expected)
    with pytest.raises(UserError, match="the mask is empty"):
        pipeline.edit(image, np.zeros((32, 32)), config=once, prompts=["a red circle"])
