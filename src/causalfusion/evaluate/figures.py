"""From features to figures: which measures are possible, and their figures.

Shape letters: N images, H, W, C pixels and channels, D numbers in a pooled feature, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extract import ExtractedFeatures
from causalfusion.evaluate.features.extractor import Extractor
from causalfusion.evaluate.measures.extrapolation import extrapolated_frechet_distance
from causalfusion.evaluate.measures.figure import MEASURES, WITHOUT_REFERENCE, Figure, MeasureName
from causalfusion.evaluate.measures.frechet import (
    few_samples_warning,
    frechet_influence,
    gaussian_frechet_distance,
)
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.measures.inception_score import inception_score, probabilities_of
from causalfusion.evaluate.measures.intervals import (
    class_accuracy,
    frechet_interval,
    mean_interval,
    share_interval,
)
from causalfusion.evaluate.measures.kernel_distance import kernel_distance
from causalfusion.evaluate.measures.manifold import density_coverage, precision_recall
from causalfusion.evaluate.references.reference import ReferenceFeatures

SCORE_SPLITS = 10
"""Splits of the Inception Score, as in the reference implementation."""
FEWEST_SAMPLES: dict[MeasureName, int] = {
    "frechet": 2,
    "spatial_frechet": 2,
    "inception_score": SCORE_SPLITS,
    "kernel": 2,
    "precision_recall": 4,
    "density_coverage": 6,
    "class_accuracy": 1,
    "frechet_infinity": 20,
}
"""Smallest numbers of samples with which a measure can be computed at all, however badly."""


@dataclass(frozen=True)
class UnnamedFigure:
    """A figure without the facts that all figures of an evaluation share, which its name needs."""

    quantity: str
    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class AvailableInputs:
    """Inputs for measures, in the features of one extractor."""

    features: str
    """Name of the feature space."""
    count: int
    """Number of samples, N."""
    has_spatial: bool
    """The extractor gives spatial features."""
    num_logits: int
    """Number of classes of the extractor, K; 0: it has no classes."""
    has_labels: bool
    """The samples have labels."""
    num_classes: int
    """Number of classes of the labels; 0: unknown."""
    reference: ReferenceFeatures | None


@dataclass(frozen=True)
class ChosenMeasures:
    possible: list[MeasureName]
    impossible: dict[str, str]
    """Reason for each measure that is left out, by its name."""


def choose_measures(measures: Sequence[MeasureName] | None, available: AvailableInputs) -> ChosenMeasures:
    """Sort measures (default: all) into possible and impossible. Raises UserError for an unknown name."""
    for name in measures or ():
        if name not in MEASURES:
            raise UserError(f"measure {name!r} is unknown; expected some of {', '.join(MEASURES)}")
    possible: list[MeasureName] = []
    impossible: dict[str, str] = {}
    for name in measures or MEASURES:
        reason = why_impossible(name, available)
        if reason:
            impossible[name] = reason
        else:
            possible.append(name)
    return ChosenMeasures(possible, impossible)


def why_impossible(name: MeasureName, available: AvailableInputs) -> str:
    """Reason why a measure cannot be computed; empty if it can."""
    if available.count < FEWEST_SAMPLES[name]:
        return f"there are {available.count} samples; it takes at least {FEWEST_SAMPLES[name]}"
    if name in WITHOUT_REFERENCE:
        if not available.num_logits:
            return f"the features {available.features} have no classes"
        if name == "class_accuracy" and not available.has_labels:
            return "the samples have no labels"
        known, asked = available.num_logits, available.num_classes
        if name == "class_accuracy" and asked not in (0, known):
            return f"{available.features} knows {known} classes, the samples {asked}"
        return ""
    if available.reference is None:
        return "there is no reference"
    if name == "spatial_frechet":
        if not available.has_spatial:
            return f"{available.features} gives no spatial features"
        return "" if available.reference.spatial is not None else "the reference has no spatial statistics"
    if name in ("kernel", "precision_recall", "density_coverage"):
        if available.reference.pool is None:
            return "the reference holds statistics only, not the features of its images"
        count = len(available.reference.pool)
        if count < FEWEST_SAMPLES[name]:
            return f"the reference has {count} images; it takes at least {FEWEST_SAMPLES[name]}"
    return ""


def compute_figures(
    samples: ExtractedFeatures,
    extractor: Extractor,
    reference: ReferenceFeatures | None,
    measures: Sequence[MeasureName],
) -> dict[str, Figure]:
    """Figures of these measures, all of which are possible, by the figures' names."""
    figures = {}
    for name in measures:
        against = reference if name not in WITHOUT_REFERENCE else None
        for part in _COMPUTE[name](samples, reference):
            figure = Figure(
                quantity=part.quantity,
                value=part.value,
                count=len(samples.pool),
                features=extractor.name,
                features_fingerprint=extractor.fingerprint,
                reference="" if against is None else against.fingerprint,
                low=part.low,
                high=part.high,
                standard_error=part.standard_error,
                warning=part.warning,
            )
            figures[figure.name] = figure
    return figures


def _few_samples(own: GaussianStatistics, reference: ReferenceFeatures) -> str:
    """Warning of too few samples or reference images; empty if there are enough."""
    return _joined(
        few_samples_warning(own.count, own.dim, "the samples"), _small_reference(reference, own.dim)
    )


def _small_reference(reference: ReferenceFeatures, dim: int) -> str | None:
    """Warning of a reference of too few images; None if there are enough, or if its file does not tell."""
    return None if reference.count is None else few_samples_warning(reference.count, dim, "the reference")


def _joined(*warnings: str | None) -> str:
    return "; ".join(warning for warning in warnings if warning)


def _frechet(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert reference is not None, "the measure is possible"
    own, other = samples.statistics, reference.statistics
    moves = frechet_influence(samples.pool, own, other)
    error = float(moves.std() / math.sqrt(len(moves)))
    warning = _few_samples(own, reference)
    return [
        UnnamedFigure("frechet", gaussian_frechet_distance(own, other), standard_error=error, warning=warning)
    ]


def _spatial_frechet(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert reference is not None, "the measure is possible"
    own, other = samples.spatial, reference.spatial
    assert own is not None and other is not None, "the measure is possible"
    warning = _few_samples(own, reference)
    return [UnnamedFigure("spatial_frechet", gaussian_frechet_distance(own, other), warning=warning)]


def _frechet_infinity(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert reference is not None, "the measure is possible"
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
        UnnamedFigure(
            "frechet_infinity",
            value,
            interval.low,
            interval.high,
            warning=_joined(few, _small_reference(reference, dim)),
        )
    ]


def _kernel(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert reference is not None and reference.pool is not None, "the measure is possible"
    found = kernel_distance(reference.pool, samples.pool)
    return [UnnamedFigure("kernel", found.mean, standard_error=found.standard_error)]


def _precision_recall(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert reference is not None and reference.pool is not None, "the measure is possible"
    found = precision_recall(reference.pool, samples.pool)
    # An interval over other samples with the same reference. Recall and coverage are no means over samples.
    interval = share_interval(found.within)
    return [
        UnnamedFigure("precision", found.precision, interval.low, interval.high),
        UnnamedFigure("recall", found.recall),
    ]


def _density_coverage(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert reference is not None and reference.pool is not None, "the measure is possible"
    found = density_coverage(reference.pool, samples.pool)
    interval = mean_interval(found.shares)
    return [
        UnnamedFigure("density", found.density, interval.low, interval.high),
        UnnamedFigure("coverage", found.coverage),
    ]


def _inception_score(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert samples.logits is not None, "the measure is possible"
    # A fixed shuffle: splits of samples that are sorted by class would score too low.
    order = np.random.default_rng(0).permutation(len(samples.logits))
    found = inception_score(probabilities_of(samples.logits[order]), SCORE_SPLITS)
    share, classes = len(order) // SCORE_SPLITS, samples.logits.shape[1]
    warning = ""
    if share < classes:
        warning = (
            f"each of {SCORE_SPLITS} splits has {share} samples for {classes} classes: the score is too low"
        )
    # Standard error of the mean. Papers customarily give the deviation of the splits, 3 times as much.
    error = found.deviation / math.sqrt(SCORE_SPLITS - 1)
    return [UnnamedFigure("inception_score", found.mean, standard_error=error, warning=warning)]


def _class_accuracy(samples: ExtractedFeatures, reference: ReferenceFeatures | None) -> list[UnnamedFigure]:
    assert samples.logits is not None and samples.labels is not None, "the measure is possible"
    found = class_accuracy(samples.logits.argmax(1), samples.labels)
    return [UnnamedFigure("class_accuracy", found.value, found.low, found.high)]


_COMPUTE: dict[MeasureName, Callable[[ExtractedFeatures, ReferenceFeatures | None], list[UnnamedFigure]]] = {
    "frechet": _frechet,
    "spatial_frechet": _spatial_frechet,
    "inception_score": _inception_score,
    "kernel": _kernel,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "class_accuracy": _class_accuracy,
    "frechet_infinity": _frechet_infinity,
}
