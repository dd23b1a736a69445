"""Whether a finding of the paper holds here: paired ratios over the seeds, and what chance allows.

Ratios, as the spread of a Fréchet distance over seeds grows with the distance: a model that fails has both.
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
"""One-sided, that a difference has the sign that it shows."""


@dataclass(frozen=True)
class Comparison:
    better: str
    worse: str
    paper: tuple[float, float] | None
    here: tuple[float, float]
    """Means over the seeds."""
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    comparisons: tuple[Comparison, ...]

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
    """From the figures of each entry, one per seed, positive and lower being better. None: not all of them
    are there, as where the data have fewer tokens than an S of the claim."""
    pairs = list(zip(claim.better, claim.worse, strict=True))
    if any(name not in here for pair in pairs for name in pair):
        return None
    return Verdict(claim, tuple(_compare(*pair, claim.within, here, paper) for pair in pairs))


def _compare(
    better: str, worse: str, within: float, here: Mapping[str, Sequence[float]], paper: Mapping[str, float]
) -> Comparison:
    left, right = np.array(here[better]), np.array(here[worse])
    known = better in paper and worse in paper
    return Comparison(
        better, worse, (paper[better], paper[worse]) if known else None,
        (float(left.mean()), float(right.mean())), outcome_of(np.log(left) - np.log(within * right)),
    )  # fmt: skip


def outcome_of(differences: np.ndarray) -> Outcome:
    """Of one difference per seed, negative where the finding holds: Student's t, one-sided."""
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return "unclear"
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(count)
    margin = float(t.ppf(CONFIDENCE, count - 1)) * error
    if mean + margin < 0:
        return "holds"
    return "reversed" if mean - margin > 0 else "unclear"
