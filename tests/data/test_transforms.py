"""The centre crop against hand-computed cases and ADM's rule, and the coin of the flip."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causalfusion.data.transforms import crop_to, flip_decision


def test_image_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
    assert np.array_equal(crop_to(image, 7, 7), image)


def test_halving_averages_two_by_two_boxes():
    image = np.array([[10, 20, 0, 4], [30, 40, 8, 12], [1, 1, 200, 200], [3, 3, 200, 200]], np.uint8)
    expected = [[25, 6], [2, 200]]
    assert crop_to(image[..., None], 2, 2)[..., 0].tolist() == expected
    assert crop_to(np.repeat(image[..., None], 3, 2), 2, 2)[..., 2].tolist() == expected


def test_cut_takes_the_middle_and_rounds_towards_the_top_left():
    columns = np.tile(np.arange(7, dtype=np.uint8), (4, 1))[..., None]
    assert crop_to(columns, 4, 4)[0, :, 0].tolist() == [1, 2, 3, 4]  # (7 - 4) // 2 = 1
    assert crop_to(columns.transpose(1, 0, 2), 4, 4)[:, 0, 0].tolist() == [1, 2, 3, 4]


def test_small_images_are_enlarged_and_thin_ones_survive():
    image = np.full((3, 50, 3), 77, np.uint8)
    assert (crop_to(image, 8, 8) == 77).all()
    assert crop_to(image, 8, 8).shape == (8, 8, 3)


@settings(max_examples=40)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 24), st.sampled_from([1, 3]), st.integers(0, 99)
)
def test_equals_the_rule_of_adm(height, width, size, channels, seed):
    """The number of halvings in closed form, then the resize and the cut, written out."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    w, h = width, height
    while w >= 2 * size and h >= 2 * size:
        w, h = w // 2, h // 2
        picture = picture.resize((w, h), Image.Resampling.BOX)
    scale = size / min(w, h)
    picture = picture.resize((round(w * scale), round(h * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    expected = np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)
    assert np.array_equal(crop_to(image, size, size), expected)


def test_flip_is_a_fair_coin_of_seed_epoch_and_index():
    coins = np.array([[flip_decision(3, epoch, index) for index in range(1000)] for epoch in range(3)])
    assert np.array_equal(coins[1], [flip_decision(3, 1, index) for index in range(1000)])
    assert np.abs(coins.mean(1) - 0.5).max() < 0.05  # 3 standard deviations
    for other in (coins[1], coins[2], [flip_decision(4, 0, index) for index in range(1000)]):
        assert 0.4 < (coins[0] == other).mean() < 0.6
