"""Testing whether a finding of the paper holds here, by ratios of figures, paired over the seeds.

Ratios are used because the spread of a Fréchet distance over seeds grows with the distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from causalfusion.study.recipe import Claim

Outcome = Literal["holds", "reversed", "unclear"]
CONFIDENCE = 0.95
"""One-sided confidence that a difference has the observed sign."""


@dataclass(frozen=True)
class PairComparison:
    """One pair of entries of a claim."""

    better: str
    worse: str
    paper: tuple[float, float] | None
    here: tuple[float, float]
    """Means over the seeds, of `better` and of `worse`."""
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    comparisons: tuple[PairComparison, ...]

    def in_words(self) -> str:
        counts = {name: sum(c.outcome == name for c in self.comparisons) for name in ("holds", "reversed")}
        total = len(self.comparisons)
        if counts["holds"] == total:
            return "holds"
        if counts["reversed"] == total:
            return "does not hold"
        if not any(counts.values()):
            return "undecided: within the spread of the seeds"
        unclear = total - sum(counts.values())
        others = f"{counts['reversed']} the other way, {unclear} undecided"
        return f"in {counts['holds']} of {total} comparisons; {others}"


def judge(claim: Claim, here: Mapping[str, Sequence[float]], paper: Mapping[str, float]) -> Verdict | None:
    """The verdict on a claim from the figures of each entry, one per seed, positive, lower being better. None
    if a figure is missing, as where the data have fewer tokens than an S of the claim."""
    pairs = list(zip(claim.better, claim.worse, strict=True))
    if any(name not in here for pair in pairs for name in pair):
        return None
    return Verdict(claim, tuple(_compare(*pair, claim.within, here, paper) for pair in pairs))


def _compare(
    better: str, worse: str, within: float, here: Mapping[str, Sequence[float]], paper: Mapping[str, float]
) -> PairComparison:
    left, right = np.array(here[better]), np.array(here[worse])
    in_paper = (paper[better], paper[worse]) if better in paper and worse in paper else None
    means = (float(left.mean()), float(right.mean()))
    return PairComparison(better, worse, in_paper, means, outcome_of(np.log(left) - np.log(within * right)))


def outcome_of(differences: np.ndarray) -> Outcome:
    """The outcome of one difference per seed, negative if the finding holds, by a one-sided t-test."""
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return "unclear"
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(count)
    margin = float(t.ppf(CONFIDENCE, count - 1)) * error
    if mean + margin < 0:
        return "holds"
    return "reversed" if mean - margin > 0 else "unclear"
