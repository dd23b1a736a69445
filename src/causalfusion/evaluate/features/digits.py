"""Features of 8x8 grey digits: the hidden layer of a small classifier of scikit-learn's own digits.

The classifier is trained on the training part of the digits alone (`split_holdout` with a fifth held out, as
in the demo), afresh in each process, in a fraction of a second. A fixed, small number of large steps keeps
rounding errors small, so that other machines get the same weights.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from causalfusion.data.digits import Digits
from causalfusion.data.loader import split_holdout
from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Features, Images, check_images
from causalfusion.files import hash_of

HOLDOUT = 0.2
_LEVELS = 16
_HIDDEN = 64
_EPOCHS = 60
_DECIMALS = 4
"""Decimals of the weights that the fingerprint covers; later ones differ between machines."""


@dataclass(frozen=True)
class _ClassifierWeights:
    hidden: NDArray[np.float64]
    """Weights from pixels to hidden units, (64, 64)."""
    hidden_bias: NDArray[np.float64]
    out: NDArray[np.float64]
    """Weights from hidden units to classes, (64, 10)."""
    out_bias: NDArray[np.float64]
    fingerprint: str


class DigitsExtractor:
    """Pool: 64 hidden units after ReLU. Logits: 10 log-probabilities.

    Grey levels are first rounded to the 17 levels of scikit-learn's digits, so that a generated image differs
    from a real one by its content, not by levels that no real image has. Images with three equal channels
    are accepted, as files of grey images are often read as RGB; images with colours raise UserError.
    """

    name = "digits"
    image_size = 8

    def __init__(self) -> None:
        self._weights = _train_classifier()
        self.fingerprint = self._weights.fingerprint

    def __call__(self, images: Images, /) -> Features:
        from scipy.special import log_softmax

        check_images(images, self.name, self.image_size)
        if (images != images[..., :1]).any():
            raise UserError("features digits: the images have colours; expected grey ones")
        images = images[..., :1]
        weights = self._weights
        hidden = np.maximum(_grey_levels(images) @ weights.hidden + weights.hidden_bias, 0)
        logits = hidden @ weights.out + weights.out_bias
        return Features(hidden.astype(np.float32), logits=log_softmax(logits, axis=1).astype(np.float32))


def _grey_levels(images: Images) -> NDArray[np.float64]:
    """Grey images (B, 8, 8, 1) with their levels rounded to the digits' own, (B, 64) in 0..1."""
    return np.round(images.reshape(len(images), -1) * (_LEVELS / 255)) / _LEVELS


@cache
def _train_classifier() -> _ClassifierWeights:
    """Weights of the classifier; the same ones every time."""
    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    digits = Digits()
    examples = [digits.read(index) for index in split_holdout(len(digits), HOLDOUT)[0]]
    inputs = _grey_levels(np.stack([example.image for example in examples]))
    labels = np.array([example.label for example in examples])
    classifier = MLPClassifier(
        (_HIDDEN,),
        alpha=0.1,
        learning_rate_init=5e-3,
        random_state=0,
        batch_size=240,  # pyright: ignore[reportArgumentType]
        max_iter=_EPOCHS,
        tol=0.0,
        n_iter_no_change=_EPOCHS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        classifier.fit(inputs, labels)
    (hidden, out), (hidden_bias, out_bias) = classifier.coefs_, classifier.intercepts_
    weights = (hidden, hidden_bias, out, out_bias)
    rounded = [np.round(array, _DECIMALS).astype(np.float32) + 0.0 for array in weights]  # no -0.0
    fingerprint = hash_of(
        ["17 grey levels", sklearn.__version__, *(array.tobytes().hex() for array in rounded)]
    )
    return _ClassifierWeights(*weights, fingerprint)
