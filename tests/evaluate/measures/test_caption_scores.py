"""Caption scores against what they are by hand."""

from __future__ import annotations

import math
import sys

import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.measures.captions import caption_scores, tokenize_caption

DISTINCT = ["one two three four five", "six seven eight nine ten", "red blue green black white"]


def test_tokenization() -> None:
    assert tokenize_caption(" A small, RED circle\n(left).") == ["a", "small", "red", "circle", "left"]
    assert tokenize_caption("It's a “t-shirt”…") == ["its", "a", "tshirt"]
    assert tokenize_caption("…!") == []


def test_identical_captions_score_full(capsys: pytest.CaptureFixture[str]) -> None:
    """All n-grams of an image are its own: every cosine is 1."""
    scores = caption_scores([text.upper() + "." for text in DISTINCT], [[text] for text in DISTINCT])
    assert scores == pytest.approx({"CIDEr-D": 10.0, "BLEU-4": 1.0, "ROUGE-L": 1.0}, abs=1e-6)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_disjoint_captions_score_nothing() -> None:
    scores = caption_scores(["p q r s t", "u v w x", "y z o n m l"], [[text] for text in DISTINCT])
    assert scores == pytest.approx({"CIDEr-D": 0.0, "BLEU-4": 0.0, "ROUGE-L": 0.0}, abs=1e-6)


def test_bleu_by_hand() -> None:
    """Candidate of 6 words, the first 5 of a 7-word reference among them: clipped precisions 5/6, 4/5, 3/4,
    2/3 and a brevity penalty exp(1 - 7/6)."""
    scores = caption_scores(["a b c d e x"], [["a b c d e f g"]])
    expected = math.exp(1 - 7 / 6) * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert scores["BLEU-4"] == pytest.approx(expected, rel=1e-6)


def test_bleu_pools_the_corpus_and_clips() -> None:
    """Counts are added over images before they are divided, a word counts as often as in its reference, and
    the closest reference has the length: no penalty, as 6 + 5 = 6 + 5."""
    scores = caption_scores(["a b c d a a", "p q r s t"], [["a b c d e f", "a b"], ["p q r s u"]])
    correct, total = [4 + 4, 3 + 3, 2 + 2, 1 + 1], [6 + 5, 5 + 4, 4 + 3, 3 + 2]
    expected = math.prod(c / t for c, t in zip(correct, total, strict=True)) ** 0.25
    assert scores["BLEU-4"] == pytest.approx(expected, rel=1e-6)


def test_rouge_by_its_formula() -> None:
    """Longest common subsequence "a c d" of 4 and 6 words; the best precision and recall over references."""

    def f(precision: float, recall: float) -> float:
        return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)

    assert caption_scores(["a b c d"], [["a x c y d z"]])["ROUGE-L"] == pytest.approx(f(3 / 4, 3 / 6))
    two = caption_scores(["a b c d"], [["a x c y d z", "a b"]])
    assert two["ROUGE-L"] == pytest.approx(f(3 / 4, 2 / 2))
    mean = caption_scores(["a b c d", "p"], [["a x c y d z"], ["p q"]])
    assert mean["ROUGE-L"] == pytest.approx((f(3 / 4, 3 / 6) + f(1, 1 / 2)) / 2)


def test_cider_d_by_hand() -> None:
    """Two images without a common word, so that every n-gram of a reference weighs log 2, as does one of no
    reference. Image 0: "a b c d" against "a b c x": cosines 3/4, 2/3, 1/2, 0 for n = 1..4."""
    scores = caption_scores(["a b c d", "p q r s"], [["a b c x"], ["p q r s"]])
    assert scores["CIDEr-D"] == pytest.approx((10 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4 + 10) / 2)


def test_cider_is_the_d_variant() -> None:
    """Repeating words does not pay (counts are clipped), and length is punished: exp(-difference² / 72)."""
    # "a a" against "a b": of the vectors (2, 0) and (1, 1), clipped: 1 / (2 sqrt 2) for n = 1, no bigram.
    scores = caption_scores(["a a", "p q r s"], [["a b"], ["p q r s"]])
    assert scores["CIDEr-D"] == pytest.approx((10 * (1 / math.sqrt(8)) / 4 + 10) / 2)
    # "a b c d" against "a b": cosines 2/sqrt(4*2), 1/sqrt(3*1), and none for n = 3, 4 as one side has none.
    penalty = math.exp(-(2**2) / (2 * 6**2))
    scores = caption_scores(["a b c d", "p q r s"], [["a b"], ["p q r s"]])
    expected = 10 * penalty * (2 / math.sqrt(8) + 1 / math.sqrt(3)) / 4
    assert scores["CIDEr-D"] == pytest.approx((expected + 10) / 2)


def test_common_ngrams_weigh_nothing() -> None:
    """An n-gram that every image has says nothing: its weight is log(2 / 2) = 0."""
    scores = caption_scores(["a b", "a b"], [["a b"], ["a b"]])
    assert scores["CIDEr-D"] == 0.0
    assert scores["ROUGE-L"] == 1.0


def test_an_empty_caption_scores_nothing() -> None:
    scores = caption_scores(["", "..."], [["a b c d"], ["e f g h"]])
    assert scores == pytest.approx({"CIDEr-D": 0.0, "BLEU-4": 0.0, "ROUGE-L": 0.0}, abs=1e-6)


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="2 captions and references for 1 images"):
        caption_scores(["a", "b"], [["a"]])
    with pytest.raises(UserError, match="no captions to score"):
        caption_scores([], [])
    for references in ([["a"], []], [["a"], ["!"]]):
        with pytest.raises(UserError, match="image 1 has no reference"):
            caption_scores(["a", "b"], references)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(UserError, match=r"pip install 'causalfusion\[eval\]'"):
        caption_scores(["a"], [["a"]])
