"""Probes against a maintained library, and against what can be known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from causalfusion.errors import UserError
from causalfusion.probe.heads import (
    PENALTIES,
    RATES,
    AttentiveHead,
    Labelled,
    attentive,
    fit_logistic,
    knn,
    linear,
    split_validation,
)

CPU = torch.device("cpu")


def blobs(count: int, seed: int, *, spread: float = 1.0) -> Labelled:
    """Three classes in 6 dimensions, of very different scales."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    centres = np.array([[2, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0]])
    x = (centres[labels] + spread * random.standard_normal((count, 6))) * [1, 1, 1, 1000, 0.01, 1] + 50
    return Labelled(x.astype(np.float32), labels)


@pytest.mark.parametrize("penalty", [0.1, 0.001])
def test_the_logistic_regression_is_scikit_learns(penalty):
    known = blobs(300, 0)
    x = torch.from_numpy((known.features - known.features.mean(0)) / known.features.std(0))
    weight, bias = fit_logistic(x, torch.from_numpy(known.labels), 3, penalty)
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=1000).fit(
        x.numpy(), known.labels
    )
    assert np.allclose(weight.numpy(), theirs.coef_, atol=5e-3)
    assert np.allclose(
        bias.numpy() - bias.mean().item(), theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3
    )


def test_linear_and_neighbours_find_classes_that_lie_apart_at_any_scale():
    train, test = blobs(400, 1, spread=0.4), blobs(200, 2, spread=0.4)
    for found in (linear(train, test.features, 3, 0, CPU), knn(train, test.features, 3, 0, CPU, 10)):
        assert (found.predicted == test.labels).mean() > 0.97 and found.validation > 0.97
    assert linear(train, test.features, 3, 0, CPU).chosen in PENALTIES


def test_labels_without_meaning_are_at_chance():
    random = np.random.default_rng(0)
    train, test = (Labelled(blobs(600, seed).features, random.integers(0, 3, 600)) for seed in (3, 4))
    found = linear(train, test.features, 3, 0, CPU)
    assert 0.27 < (found.predicted == test.labels).mean() < 0.40


def test_one_neighbour_of_a_known_image_is_itself():
    train = blobs(100, 5)
    assert (knn(train, train.features, 3, 0, CPU, 1).predicted == train.labels).all()
    with pytest.raises(UserError, match="--neighbours is 90; expected at most 80"):
        knn(train, train.features, 3, 0, CPU, 90)


def test_attentive_finds_the_token_that_tells():
    """One token of four, at any place, carries the class; the mean over tokens hides it in noise."""

    def scenes(count, seed):
        random = np.random.default_rng(seed)
        x = random.standard_normal((count, 4, 16))
        x[:, :, 0] = 0
        labels, place = random.integers(0, 2, count), random.integers(0, 4, count)
        rows = np.arange(count)
        x[rows, place] = 0
        x[rows, place, 0], x[rows, place, 1] = 6, np.where(labels == 1, 1.5, -1.5)
        return Labelled(x.astype(np.float16), labels)

    train, test = scenes(1200, 0), scenes(400, 1)
    found = attentive(train, test.features, 2, 0, CPU, 250)
    pooled = Labelled(train.features.astype(np.float32).mean(1), train.labels)
    plain = linear(pooled, test.features.astype(np.float32).mean(1), 2, 0, CPU)
    by_attention, by_mean = ((f.predicted == test.labels).mean() for f in (found, plain))
    assert by_attention > 0.9 > by_mean and found.chosen in RATES
    few = [attentive(train.rows(np.arange(300)), test.features, 2, 0, CPU, 30).predicted for _ in range(2)]
    assert (few[0] == few[1]).all() and 0 < few[0].mean() < 1, "the seed decides"


def test_the_head_does_not_ask_for_the_order_of_tokens():
    head = AttentiveHead(32, 5).eval()
    torch.nn.init.normal_(head.query)
    tokens = torch.randn(2, 7, 32)
    assert torch.allclose(head(tokens), head(tokens.flip(1)), atol=1e-5)


def test_validation_images_are_a_fifth_and_no_other():
    first, second = split_validation(101, 3)
    assert len(second) == 20 and sorted([*first, *second]) == list(range(101))
