"""Verdicts on findings, against scipy's own paired test."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from causalfusion.study.recipe import Claim
from causalfusion.study.verdict import judge, outcome_of


@pytest.mark.parametrize("seed", range(20))
def test_outcomes_are_those_of_a_paired_t_test(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=4), rng.normal(0.8, size=4)
    less = ttest_rel(left, right, alternative="less").pvalue < 0.05
    greater = ttest_rel(left, right, alternative="greater").pvalue < 0.05
    assert outcome_of(left - right) == ("holds" if less else "reversed" if greater else "unclear")


def test_one_seed_decides_nothing():
    assert outcome_of(np.array([-5.0])) == "unclear"


HERE = {"a @ 1": [1.0, 1.1, 0.9], "b @ 1": [2.0, 2.1, 1.9], "c @ 1": [1.0, 1.2, 0.8]}


@pytest.mark.parametrize(
    ("better", "worse", "within", "words"),
    [
        (["a @ 1"], ["b @ 1"], 1.0, "holds"),
        (["b @ 1"], ["a @ 1"], 1.0, "does not hold"),
        (["b @ 1"], ["a @ 1"], 3.0, "holds"),
        (["a @ 1"], ["c @ 1"], 1.0, "undecided: within the spread of the seeds"),
        (["a @ 1", "b @ 1"], ["b @ 1", "a @ 1"], 1.0, "in 1 of 2 comparisons; 1 the other way, 0 undecided"),
    ],
)
def test_verdicts_in_words(better, worse, within, words):
    verdict = judge(Claim(text="t", better=better, worse=worse, within=within), HERE, {"a @ 1": 5.0})
    assert verdict is not None
    assert verdict.in_words() == words
    assert verdict.comparisons[0].paper is None, "the paper has only one side of it"


def test_ratios_are_compared():
    """A failing model fails by as much or more, with every seed: its spread does not speak for it."""
    here = {"a @ 1": [1.0, 1.0, 1.0], "b @ 1": [5.0, 2.0, 2.5]}
    assert ttest_rel(here["a @ 1"], here["b @ 1"], alternative="less").pvalue > 0.05
    verdict = judge(Claim(text="t", better=["a @ 1"], worse=["b @ 1"]), here, {})
    assert verdict is not None and verdict.in_words() == "holds"


def test_what_was_not_measured_is_not_judged():
    assert judge(Claim(text="t", better=["a @ 1"], worse=["a @ 8"]), HERE, {}) is None
