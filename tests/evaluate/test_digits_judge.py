from __future__ import annotations

import numpy as np
import pytest
import torch

from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.data.loader import load_indices, split_holdout
from causalfusion.errors import UserError
from causalfusion.evaluate.digits_judge import DigitsJudge, grey_levels, nearest_distance


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, held-out images and labels, as the demo splits them."""
    config = DataConfig(source="digits", holdout=0.2)
    source = open_source(config)
    seen, unseen = (load_indices(source, i, config) for i in split_holdout(len(source), config.holdout))
    return seen.images, seen.labels, unseen.images, unseen.labels


def test_grey_levels_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    config = DataConfig(source="digits")
    source = open_source(config)
    images = load_indices(source, np.arange(len(source)), config).images
    assert np.array_equal(grey_levels(images).numpy(), load_digits(return_X_y=True)[0])


def test_grey_levels_are_clamped_and_rounded() -> None:
    images = torch.tensor([-1.5, -1.0, -0.95, -0.9, 0.0, 1.0, 1.2]).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    assert grey_levels(images)[:, 0].tolist() == [0, 0, 0, 1, 8, 16, 16]
    with pytest.raises(UserError, match=r"expects \(B, 1, 8, 8\)"):
        grey_levels(torch.zeros(2, 3, 8, 8))


def test_judge_reads_unseen_digits_and_is_not_fooled(digits) -> None:
    train_images, train_labels, images, labels = digits
    judge = DigitsJudge.trained_on(train_images, train_labels)
    assert judge.accuracy(images, labels) >= 0.97
    assert judge.accuracy(images, (labels + 1) % 10) <= 0.03
    noise = torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert judge.accuracy(noise, torch.arange(500) % 10) < 0.2


def test_nearest_distance_is_zero_for_copies_and_one_for_one_level(digits) -> None:
    train_images, _, images, _ = digits
    assert nearest_distance(train_images[:50], train_images) == pytest.approx(0, abs=1e-6)
    blank = torch.full((3, 1, 8, 8), -1.0)
    changed = blank.clone()
    changed[:, 0, 2, 3] += 2 / 16
    assert nearest_distance(changed, blank) == pytest.approx(1)
    assert nearest_distance(images, train_images) > 10
