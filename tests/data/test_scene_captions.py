"""Captions: what is written is clearly true and comes back from the words; what else there is does not."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.config import SplitName
from causalfusion.data.drawing import COLORS, SHAPES, Scene, SceneObject
from causalfusion.data.scene_captions import (
    OPENINGS,
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TEMPLATES,
    Description,
    Named,
    describe,
    is_at,
    is_related,
    parse_caption,
)
from causalfusion.data.shapes import Shapes

SPLITS = get_args(SplitName)
RED, BLUE, GREEN = (
    Named("small", "red", "circle"), Named("large", "blue", "star"), Named(None, "green", "square")
)  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_is_understood_and_true(split: SplitName):
    source = Shapes(split)
    for index in range(1000):
        scene = source.scene(index)
        for caption in source.captions(index):
            description = parse_caption(caption)
            assert description is not None, caption
            figures = {(f.color, f.shape): f for f in scene.figures}
            named = [figures[n.color, n.shape] for n in description.objects]
            assert len(set(named)) == len(scene.figures) == len(description.objects), caption
            assert all(n.size == f.size for n, f in zip(description.objects, named, strict=True))
            # Clearly true: not just within the tolerance with which captions are judged.
            assert all(is_related(named[i], r, named[j], 0.16) for i, r, j in description.relations)
            for i, place in description.places:
                assert is_at(named[i], place)
                others = [p for p in PLACE_WORDS if p != place and is_at(named[i], p)]
                assert not others, f"{caption}: could also be {others}"


def test_captions_are_short_lower_case_and_of_every_kind():
    source = Shapes()
    captions = [caption for index in range(3000) for caption in source.captions(index)]
    assert all(caption.isascii() and caption == caption.lower() for caption in captions)
    assert max(len(caption.split()) for caption in captions) <= 30
    everything = "\n".join(captions)
    for groups in (SIZE_WORDS, RELATION_WORDS, PLACE_WORDS, {"": OPENINGS}):
        assert all(word in everything for words in groups.values() for word in words)
    found = [parse_caption(caption) for caption in captions]
    alone = [d for d in found if d and len(d.objects) == 1]
    more = [d for d in found if d and len(d.objects) > 1]
    assert 0.3 < sum(bool(d.places) for d in alone) / len(alone) < 0.8
    assert 0.5 < sum(bool(d.relations) for d in more) / len(more) < 0.9
    assert len(set(captions)) > 0.8 * len(captions)


@pytest.mark.parametrize(
    ("number", "template"),
    [(n, template) for n, group in TEMPLATES.items() for template in sorted(set(group))],
)
def test_every_template_can_be_written_and_read(number: int, template: str, monkeypatch: pytest.MonkeyPatch):
    assert parse_caption("a red circle")  # the parser knows all templates, of which one is written
    monkeypatch.setitem(TEMPLATES, number, (template,))
    figures = (("circle", "red", 0.2), ("star", "blue", 0.5), ("star", "green", 0.8))
    scene = Scene(tuple(SceneObject(s, c, "small", x, 0.2, 0.13) for s, c, x in figures[:number]))
    for seed in range(20):
        caption = describe(scene, np.random.default_rng(seed))
        description = parse_caption(caption)
        assert description is not None and len(description.objects) == number, caption
        assert len(description.places) == template.count("@")
        assert len(description.relations) == template.count(">")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a small red circle", Description((RED,))),
        ("A Tiny red  circle.", Description((RED,))),
        ("in the upper left there is a little red circle", Description((RED,), (), ((0, "top left"),))),
        ("there is a big blue star on the right side", Description((BLUE,), (), ((0, "right"),))),
        ("a green square", Description((GREEN,))),
        ("a picture of an orange star", Description((Named(None, "orange", "star"),))),
        (
            "a small red circle is to the left of a large blue star",
            Description((RED, BLUE), ((0, "left", 1),)),
        ),
        ("a small red circle with a big blue star to its left", Description((RED, BLUE), ((1, "left", 0),))),
        ("a big blue star and a tiny red circle under it", Description((BLUE, RED), ((1, "below", 0),))),
        ("two shapes: a small red circle and a green square", Description((RED, GREEN))),
        (
            "a big blue star at the top with a green square below it and a tiny red circle on its right",
            Description((BLUE, GREEN, RED), ((1, "below", 0), (2, "right", 0)), ((0, "top"),)),
        ),
        (
            "a small red circle above a large blue star, and a green square right of the blue star",
            Description((RED, BLUE, GREEN), ((0, "above", 1), (2, "right", 1))),
        ),
        (
            "a small red circle above a large blue star, and a green square right of the small red circle",
            Description((RED, BLUE, GREEN), ((0, "above", 1), (2, "right", 0))),
        ),
    ],
)  # fmt: skip
def test_what_a_caption_says(caption: str, expected: Description):
    assert parse_caption(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "", " ", ".", "a", "a small circle", "a red", "small red circle", "a red small circle",
        "a pink circle", "a red circlea blue star", "a red circle a blue star", "a red circle and",
        "a red circle,", "there is", "there isa red circle", "a red circle in the",
        "a red circle at the top at the top",
        "a small tiny red circle", "two shapes: a red circle", "three shapes: a red circle and a blue star",
        "a red circle above a blue star, and a green square right of the green star",
        "a red circle above a blue star, and a green square right of the large red star",
        "a small red circle above a blue star, and a green square right of the large red circle",
        "a red circle above it", "a red circle! and a blue star", "a red circle\x00", "ein roter Kreis",
        "a red circle and a blue star and a green square", "a red circle " * 500,
    ],
)  # fmt: skip
def test_what_is_not_of_the_grammar_says_nothing(caption: str):
    assert parse_caption(caption) is None


WORDS = sorted(
    {*SHAPES, *COLORS, "a", "an", "the", "is", "and", "with", "it", "its", "two", "shapes", ",", ":", "."}
    | {word for groups in (SIZE_WORDS, RELATION_WORDS, PLACE_WORDS) for g in groups.values() for word in g}
)


@settings(max_examples=300)
@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_anything_can_be_parsed_without_an_error(text: str):
    description = parse_caption(text)
    assert description is None or 1 <= len(description.objects) <= 3


def test_a_word_changed_changes_what_is_said_or_leaves_the_grammar():
    random, source = np.random.default_rng(0), Shapes()
    changes = 0
    for index in range(300):
        caption = source.captions(index)[0]
        words = caption.split()
        place, word = int(random.integers(len(words))), WORDS[int(random.integers(len(WORDS)))]
        old, words[place] = words[place], word
        if old in (*SHAPES, *COLORS) and word != old:
            changes += 1
            assert parse_caption(" ".join(words)) != parse_caption(caption)
    assert changes > 80
