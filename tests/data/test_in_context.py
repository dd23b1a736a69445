"""Few-shot documents: determined by their address, true to their rule, and judged by the oracle."""

from dataclasses import replace

import numpy as np
import pytest

from causalfusion.config.sizes import Fit
from causalfusion.data.drawing import COLORS, SHAPES, SIZES
from causalfusion.data.in_context import (
    DISTANCE,
    KINDS,
    VALUES,
    InContext,
    Rule,
    is_unseen,
    same_figure,
)
from causalfusion.errors import UserError
from causalfusion.evaluate.in_context import Judgement, accuracy, judge
from causalfusion.evaluate.measures.scenes import read_scene

WRONG = Judgement(right=False, rule=False)


def read(data: InContext, figure):
    return read_scene(data.draw(figure))


def test_a_document_is_a_function_of_seed_split_epoch_and_index():
    data, again = InContext(seed=1), InContext(seed=1)
    assert [data.episode(i, 2) for i in range(20)] == [again.episode(i, 2) for i in range(20)]
    others = (InContext(seed=2).episode(0, 2), data.episode(1, 2), data.episode(0, 3))
    assert data.episode(0, 2) not in (*others, InContext("test", seed=1).episode(0, 2))
    for index in range(20):
        elements, episode = data.read(index).elements, data.episode(index)
        assert sum(not isinstance(e, str) for e in elements) == data.images_of(index)
        assert tuple(e for e in elements if isinstance(e, str)) == data.texts(index)
        assert np.array_equal(elements[-1], data.draw(episode.shots[-1].answer))


@pytest.mark.parametrize("task", ["pairs", "words"])
@pytest.mark.parametrize("examples", [0, 1, 4])
def test_every_shot_follows_the_rule_inside_the_image(task, examples):
    data, kinds = InContext(task=task, examples=examples), set()
    for index in range(60):
        rule, shots = vars(data.episode(index)).values()
        kinds.add(rule.kind)
        assert len(shots) == examples + 1 and rule.value in VALUES[rule.kind]
        for shot in shots:
            for figure in filter(None, (shot.given, shot.answer)):
                low, high = figure.radius, 1 - figure.radius
                assert low <= figure.x <= high and low <= figure.y <= high
                assert SIZES[figure.size][0] <= figure.radius <= SIZES[figure.size][1]
            if shot.given is not None:
                assert shot.answer == rule.apply(shot.given) and shot.caption == ""
            else:
                assert rule.word in shot.caption.split() and rule.value not in shot.caption.split()
                assert rule.apply(shot.answer) == shot.answer
                named = {shot.answer.size, shot.answer.color, shot.answer.shape} - {rule.value}
                assert named <= set(shot.caption.split())
    assert kinds == set(KINDS[task])


def test_rules_do_what_they_say():
    figure = InContext(task="pairs").episode(0).shots[0].answer
    for kind, values, name in (("recolor", COLORS, "color"), ("reshape", SHAPES, "shape")):
        for value in values:
            assert Rule(kind, value).apply(figure) == replace(figure, **{name: value})
    left, mirrored = Rule("move", "left").apply(figure), Rule("mirror", "top and bottom").apply(figure)
    assert left == replace(figure, x=figure.x - DISTANCE) and mirrored == replace(figure, y=1 - figure.y)
    small = Rule("resize", "small").apply(figure)
    assert Rule("resize", figure.size).apply(small).radius == pytest.approx(figure.radius)


def test_made_up_words_of_the_test_split_are_in_no_document_of_training():
    words = {
        split: {InContext(split, task="words").episode(i).rule.word for i in range(300)}
        for split in ("train", "test")
    }
    assert not words["train"] & words["test"] and all(map(is_unseen, words["test"]))
    assert not any(map(is_unseen, words["train"])) and len(words["train"]) > 200


@pytest.mark.parametrize("task", ["pairs", "words"])
def test_the_oracle_takes_right_answers_and_no_others(task):
    """All answers as they should be are right; the given image itself, that under another rule, an example's
    answer, one without a figure and one with two are wrong."""
    data, found = InContext("test", task=task, fit=Fit(24, 24)), []
    rules = [Rule(kind, value) for kind in KINDS["pairs"] for value in VALUES[kind]]
    for index in range(50):
        rule, (*examples, query) = vars(data.episode(index)).values()
        found.append(judge(rule, query, read(data, query.answer)))
        wrong = [shot.answer for shot in examples]
        if query.given is not None:
            others = [other.apply(query.given) for other in rules[index % 5 :: 5]]
            wrong = [query.given, *(o for o in others if max(abs(o.x - 0.5), abs(o.y - 0.5)) < 0.35)]
        differ = [w for w in wrong if not same_figure(w, query.answer, placed=query.given is not None)]
        assert differ and not any(judge(rule, query, read(data, w)).right for w in differ)
        blank = data.draw(replace(query.answer, x=9.0))
        moved = replace(query.answer, x=0.2, y=0.2), replace(query.answer, x=0.8, y=0.8, color="black")
        both = np.minimum(data.draw(moved[0]), data.draw(moved[1]))
        assert judge(rule, query, read_scene(blank)) == judge(rule, query, read_scene(both)) == WRONG
    kinds = [data.episode(index).rule for index in range(50)]
    assert set(accuracy(kinds, found).values()) == {1.0}


def test_the_query_is_never_answered_by_copying():
    pairs, words = InContext(task="pairs"), InContext(task="words")
    for index in range(80):
        query = pairs.episode(index).shots[-1]
        assert not judge(pairs.episode(index).rule, query, read(pairs, query.given)).right
        *examples, query = words.episode(index).shots
        assert not any(same_figure(e.answer, query.answer, placed=False) for e in examples)


def test_what_in_context_cannot_be():
    with pytest.raises(UserError, match="in_context has no split 'compositional'"):
        InContext("compositional")
    with pytest.raises(UserError, match=r"data\.image_size is 8x8; expected at least 16 for in_context"):
        InContext(fit=Fit(8, 8))
    with pytest.raises(IndexError):
        InContext(length=3).read(3)
