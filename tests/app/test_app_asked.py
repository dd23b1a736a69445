"""What the page asks for: bounds, values as controls and links give them, and links there and back."""

from __future__ import annotations

import string
from dataclasses import replace
from typing import get_args
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalfusion.app.asked import (
    LAST_SEED,
    MOST_AR_STEPS,
    MOST_DIFFUSION_STEPS,
    MOST_GUIDANCE,
    MOST_IMAGES,
    MOST_PASSES,
    NAMES,
    Asked,
    from_query,
    read_asked,
    to_query,
)
from causalfusion.config.generation import OrderName
from causalfusion.errors import UserError

TEXTS = st.text(max_size=60)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    ar_steps = draw(st.integers(1, MOST_AR_STEPS))
    return Asked(
        prompt=draw(TEXTS),
        class_name=draw(TEXTS),
        ar_steps=ar_steps,
        order=draw(st.sampled_from(get_args(OrderName))),
        diffusion_steps=draw(st.integers(1, min(MOST_DIFFUSION_STEPS, MOST_PASSES // ar_steps))),
        guidance=draw(st.integers(0, int(MOST_GUIDANCE * 10))) / 10,
        seed=draw(st.integers(0, LAST_SEED)),
        images=draw(st.integers(1, MOST_IMAGES)),
    )


@given(requests(), requests())
def test_a_link_gives_back_what_it_was_made_of_whatever_the_defaults(asked: Asked, defaults: Asked):
    query = dict(parse_qsl(to_query(asked, "a/model"), keep_blank_values=True))
    assert query["model"] == "a/model"
    assert from_query(query, defaults) == asked


def test_a_query_of_others_asks_for_nothing():
    assert from_query({"__theme": "dark", "model": "shapes"}, Asked()) is None
    assert from_query({"seed": "5", "utm": "x"}, Asked(guidance=3)) == Asked(guidance=3, seed=5)


def test_values_come_as_numbers_or_as_texts():
    values = {"ar_steps": 4.0, "diffusion_steps": "8", "guidance": "2.5", "seed": 7, "prompt": None}
    asked = read_asked(values, Asked(prompt="a star"))
    assert asked == Asked(prompt="a star", ar_steps=4, diffusion_steps=8, guidance=2.5, seed=7)
    assert isinstance(asked.ar_steps, int)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"images": 17}, "the number of pictures is 17; expected 1 to 16"),
        ({"images": "0"}, "the number of pictures is 0"),
        ({"diffusion_steps": 251}, "the number of refinement steps is 251; expected 1 to 250"),
        ({"ar_steps": 1e99}, "the number of parts"),
        ({"ar_steps": 1024, "diffusion_steps": 250}, "256,000 steps; expected at most 32,000"),
        ({"guidance": float("nan")}, "the guidance is 'nan'; expected a number"),
        ({"guidance": "1e9"}, "the guidance is 1000000000.0; expected 0 to 20"),
        ({"seed": "-1"}, "the seed is -1"),
        ({"seed": "2.5"}, "the seed is 2.5; expected a whole number"),
        ({"seed": "inf"}, "the seed is 'inf'; expected a number"),
        ({"order": "sideways"}, "the order is 'sideways'; expected one of random, raster"),
        ({"prompt": "x" * 2001}, "the description has 2,001 characters; expected at most 2,000"),
    ],
)
def test_what_is_out_of_bounds_is_said_in_one_line(values, words):
    with pytest.raises(UserError) as refused:
        read_asked(values, Asked())
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_names_in_links_are_plain_words_and_all_fields_have_one():
    assert set(NAMES) == set(Asked.__dataclass_fields__)
    assert all(set(name) <= set(string.ascii_lowercase) for name in NAMES.values())
    assert replace(Asked(), seed=3) != Asked()
