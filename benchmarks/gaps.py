"""The rule by which benchmarks of training call a difference between two arms one that is seen."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev


def in_words(gaps: Sequence[float]) -> str:
    """The mean of differences, one for each seed, with its standard error; a difference is seen if one arm is
    ahead with every seed and the mean exceeds twice that error."""
    error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    seen = (min(gaps) > 0 or max(gaps) < 0) and abs(mean(gaps)) > 2 * error
    words = "a difference" if seen else "no difference to be seen"
    return f"{mean(gaps):+.4g} ± {error:.2g}: {words}"
