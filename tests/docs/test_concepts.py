"""The pictures of docs/concepts.md show what the page says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.concepts import labels_of, noise_of_tokens, packed_row, rules_of_mask  # noqa: E402


def test_tokens_fall_from_noise_to_clean_in_their_ar_step_alone():
    levels = noise_of_tokens(16, 4, 6)
    assert levels.shape == (16, 24)
    for token in range(16):
        first = 6 * (token // 4)
        assert np.isnan(levels[token, :first]).all() and (levels[token, first + 6 :] == 0).all()
        assert levels[token, first] == 1 and (np.diff(levels[token, first : first + 6]) < 0).all()


def test_a_noised_token_never_sees_its_own_clean_copy():
    row = packed_row()
    names, rules = labels_of(row), rules_of_mask(row)
    assert len(names) == 2 + 5 + 8  # the last AR step has no clean copies
    for query, name in enumerate(names):
        if "tilde" in name:
            copy = name.replace("\\tilde{x}", "x")
            assert copy not in names or rules[query, names.index(copy)] == 0
    counts = {int(rule): int((rules == rule).sum()) for rule in np.unique(rules)}
    assert counts[3] == 3 * 3 + 2 * 2 + 3 * 3  # within AR steps of 3, 2 and 3
