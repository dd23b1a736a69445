"""Classes by name and number: one rule for all commands and for the whole of a list."""

from __future__ import annotations

import unicodedata

import pytest

from causalfusion.errors import UserError
from causalfusion.generate.settings import parse_classes

NUMBERS = sorted(str(k) for k in range(1, 13))
"""Folders 1..12 in alphabetical order: 1, 10, 11, 12, 2, ..."""


def refusal(values: list[str], names: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        parse_classes(values, names, len(names))
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (["cat", "DOG", "1", "index:2", "name:cat"], ["cat", "Dog", "owl"], [0, 1, 1, 2, 0]),
        (["7", "1"], ["cat", "Dog", "7"], [2, 1]),
        (["3", "0"], [str(k) for k in range(10)], [3, 0]),
        (["207", "388"], ["207", "388"], [0, 1]),
        (["name:10", "index:10", "12"], NUMBERS, [1, 10, 3]),
        (["2"], [], [2]),
        (["index:3"], ["index:3", "b", "c", "d"], [0]),
        (["Cat", "cat"], ["cat", "Cat"], [1, 0]),
    ],
)
def test_a_name_is_its_class_and_else_a_number_is_an_index(values, names, labels):
    assert parse_classes(values, names, max(len(names), 3)) == labels


def test_an_ambiguous_name_refuses_the_list():
    assert "class '10' is the name of one class and the index of another ('8'); say name:10 or index:10" in (
        refusal(["12", "10"], NUMBERS)
    )
    assert "class '0' is unknown; expected one of 1, 10, " in refusal(["0", "12"], NUMBERS)
    assert "or index:N with N from 0 to 1" in refusal(["0"], ["207", "388"])


def test_a_name_of_two_classes_is_refused():
    names = ["crane", "boat", "crane"]
    assert "class 'crane' is the name of 2 classes; say which: index:0, index:2" in refusal(["crane"], names)
    assert parse_classes(["index:2", "boat"], names, 3) == [2, 1]
    assert "is the name of 2 classes" in refusal(["CAT"], ["cat", "Cat"])
    both = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    assert "is the name of 2 classes" in refusal(["café"], both)


def test_accents_are_the_same_however_they_are_written():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert parse_classes([composed, decomposed], ["boat", decomposed], 2) == [1, 1]
    assert parse_classes([composed, decomposed], ["boat", composed], 2) == [1, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fish", "class 'fish' is unknown; expected one of cat, dog, or a number from 0 to 1"),
        ("2", "class 2 is out of range; expected a number from 0 to 1"),
        ("-1", "class -1 is out of range"),
        ("index:x", "expected index:N, such as index:0"),
        ("index:9", "class 9 is out of range"),
        ("name:0", "class 'name:0' is unknown"),
        ("1" * 60, "is unknown"),
    ],
)
def test_what_is_no_class_is_refused(value, message):
    assert message in refusal([value], ["cat", "dog"])
