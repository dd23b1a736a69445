"""From features to figures: which measures are possible, and what they say.

Shape letters: N images, H, W, C pixels and channels, D numbers in a pooled feature, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Extractor
from causalfusion.evaluate.features.reference import ReferenceFeatures
from causalfusion.evaluate.measures.bootstrap import (
    class_accuracy,
    frechet_interval,
    mean_interval,
    share_interval,
)
from causalfusion.evaluate.measures.extrapolation import extrapolated_frechet_distance
from causalfusion.evaluate.measures.figure import MEASURES, Figure, MeasureName
from causalfusion.evaluate.measures.frechet import check_enough, frechet_distance_of, frechet_influence
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.measures.inception_score import inception_score, probabilities_of
from causalfusion.evaluate.measures.kernel_distance import kernel_distance
from causalfusion.evaluate.measures.manifold import density_coverage, precision_recall
from causalfusion.evaluate.samples.collect import Collected

SPLITS = 10
"""Of the Inception score, as everywhere."""
NEEDED: dict[MeasureName, int] = {
    "frechet": 2, "spatial_frechet": 2, "inception_score": SPLITS, "kernel": 2, "precision_recall": 4,
    "density_coverage": 6, "class_accuracy": 1, "frechet_infinity": 20,
}  # fmt: skip
"""Samples without which there is no figure at all, be it a bad one."""


@dataclass(frozen=True)
class Part:
    """A figure before it has a name."""

    quantity: str
    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What there is to measure with, in the features of one extractor."""

    features: str
    count: int
    """N."""
    spatial: bool
    num_logits: int
    """K; 0: none."""
    labels: bool
    num_classes: int
    """Of the labels; 0: unknown."""
    reference: ReferenceFeatures | None


def choose(measures: Sequence[MeasureName] | None, means: Means) -> tuple[list[MeasureName], dict[str, str]]:
    """The possible ones of these measures (of all, by default), and why each of the others is not."""
    for name in measures or ():
        if name not in MEASURES:
            raise UserError(f"measure {name!r} is unknown; expected some of {', '.join(MEASURES)}")
    possible: list[MeasureName] = []
    left_out: dict[str, str] = {}
    for name in measures or MEASURES:
        reason = obstacle(name, means)
        if reason:
            left_out[name] = reason
        else:
            possible.append(name)
    return possible, left_out


def obstacle(name: MeasureName, means: Means) -> str:
    """Why this cannot be measured; empty where it can."""
    if means.count < NEEDED[name]:
        return f"there are {means.count} samples; it takes at least {NEEDED[name]}"
    if name in ("inception_score", "class_accuracy"):
        if not means.num_logits:
            return f"the features {means.features} have no classes"
        if name == "class_accuracy" and not means.labels:
            return "the samples have no labels"
        if name == "class_accuracy" and means.num_classes not in (0, means.num_logits):
            return f"{means.features} knows {means.num_logits} classes, the samples {means.num_classes}"
        return ""
    if means.reference is None:
        return "there is no reference"
    if name == "spatial_frechet":
        if not means.spatial:
            return f"{means.features} gives no spatial features"
        return "" if means.reference.spatial is not None else "the reference has no spatial statistics"
    if name in ("kernel", "precision_recall", "density_coverage"):
        if means.reference.pool is None:
            return "the reference holds statistics only, not the features of its images"
        if len(means.reference.pool) < NEEDED[name]:
            return f"the reference has {len(means.reference.pool)} images; it takes at least {NEEDED[name]}"
    return ""


def figures_of(
    samples: Collected,
    extractor: Extractor,
    reference: ReferenceFeatures | None,
    measures: Sequence[MeasureName],
) -> dict[str, Figure]:
    """These measures, all of them possible, by the figures' names."""
    figures = {}
    for name in measures:
        against = reference if name not in _WITHOUT_REFERENCE else None
        for part in _MEASURES[name](samples, reference):
            figure = Figure(
                quantity=part.quantity, value=part.value, count=len(samples.pool), features=extractor.name,
                features_fingerprint=extractor.fingerprint,
                reference="" if against is None else against.fingerprint, low=part.low, high=part.high,
                standard_error=part.standard_error, warning=part.warning,
            )  # fmt: skip
            figures[figure.name] = figure
    return figures


def _too_few(own: GaussianStatistics, reference: ReferenceFeatures) -> str:
    """A warning where there are."""
    return _both(check_enough(own.count, own.dim, "the samples"), _small(reference, own.dim))


def _small(reference: ReferenceFeatures, dim: int) -> str | None:
    """A warning where it is of too few images; a file of others does not say of how many."""
    return None if reference.count is None else check_enough(reference.count, dim, "the reference")


def _both(*warnings: str | None) -> str:
    return "; ".join(warning for warning in warnings if warning)


def _frechet(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert reference is not None, "an obstacle otherwise"
    own, other = samples.statistics, reference.statistics
    moves = frechet_influence(samples.pool, own, other)
    error = float(moves.std() / math.sqrt(len(moves)))
    warning = _too_few(own, reference)
    return [Part("frechet", frechet_distance_of(own, other), standard_error=error, warning=warning)]


def _spatial_frechet(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert reference is not None, "an obstacle otherwise"
    own, other = samples.spatial, reference.spatial
    assert own is not None and other is not None, "an obstacle otherwise"
    warning = _too_few(own, reference)
    return [Part("spatial_frechet", frechet_distance_of(own, other), warning=warning)]


def _frechet_infinity(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert reference is not None, "an obstacle otherwise"
    value = extrapolated_frechet_distance(reference.statistics, samples.pool)
    interval = frechet_interval(reference.statistics, samples.pool)
    count, dim = samples.pool.shape
    few = None
    if count < 2 * dim:
        few = (
            f"{count} samples for features of D = {dim}: the distance is not linear in 1 / N there, and the "
            f"extrapolation not to be trusted; use {2 * dim} samples or more"
        )
    return [
        Part(
            "frechet_infinity",
            value,
            interval.low,
            interval.high,
            warning=_both(few, _small(reference, dim)),
        )
    ]


def _kernel(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert reference is not None and reference.pool is not None, "an obstacle otherwise"
    found = kernel_distance(reference.pool, samples.pool)
    return [Part("kernel", found.mean, standard_error=found.standard_error)]


def _precision_recall(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert reference is not None and reference.pool is not None, "an obstacle otherwise"
    found = precision_recall(reference.pool, samples.pool)
    # Of other samples beside the same reference. Recall and coverage are no means over samples.
    interval = share_interval(found.within)
    return [Part("precision", found.precision, interval.low, interval.high), Part("recall", found.recall)]


def _density_coverage(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert reference is not None and reference.pool is not None, "an obstacle otherwise"
    found = density_coverage(reference.pool, samples.pool)
    interval = mean_interval(found.shares)
    return [Part("density", found.density, interval.low, interval.high), Part("coverage", found.coverage)]


def _inception_score(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert samples.logits is not None, "an obstacle otherwise"
    # Shuffled, always alike: splits of samples that are sorted by class would score too low.
    order = np.random.default_rng(0).permutation(len(samples.logits))
    found = inception_score(probabilities_of(samples.logits[order]), SPLITS)
    share, classes = len(order) // SPLITS, samples.logits.shape[1]
    warning = ""
    if share < classes:
        warning = f"each of {SPLITS} splits has {share} samples for {classes} classes: the score is too low"
    # Of the mean of the splits; customary is their deviation itself, SPLITS - 1 = 9, that is 3 times as much.
    error = found.deviation / math.sqrt(SPLITS - 1)
    return [Part("inception_score", found.mean, standard_error=error, warning=warning)]


def _class_accuracy(samples: Collected, reference: ReferenceFeatures | None) -> list[Part]:
    assert samples.logits is not None and samples.labels is not None, "an obstacle otherwise"
    found = class_accuracy(samples.logits.argmax(1), samples.labels)
    return [Part("class_accuracy", found.value, found.low, found.high)]


_WITHOUT_REFERENCE = ("inception_score", "class_accuracy")
_MEASURES: dict[MeasureName, Callable[[Collected, ReferenceFeatures | None], list[Part]]] = {
    "frechet": _frechet,
    "spatial_frechet": _spatial_frechet,
    "inception_score": _inception_score,
    "kernel": _kernel,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "class_accuracy": _class_accuracy,
    "frechet_infinity": _frechet_infinity,
}
