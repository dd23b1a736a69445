"""The frontier, against its definition; the choice; times in words."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalfusion.config import HeadConfig, ModelConfig, SampleConfig
from causalfusion.errors import UserError
from causalfusion.planner.sweep import Sweep, Tried, choose, frontier, in_time, read_time

MODEL = ModelConfig(grid_height=4, grid_width=4)
POINTS = st.lists(st.tuples(st.integers(1, 9), st.one_of(st.none(), st.integers(0, 9))), min_size=1)


def tried(points):
    return [
        Tried(settings=SampleConfig(), seconds_per_image=float(s), frechet=None if f is None else float(f))
        for s, f in points
    ]


@given(POINTS)
def test_on_the_frontier_is_what_nothing_beats(points):
    found = frontier(tried(points))
    best = {(t.seconds_per_image, t.frechet) for t in found}
    measured = {(s, f) for s, f in points if f is not None}
    expected = {
        (s, f) for s, f in measured if not any(o != (s, f) and o[0] <= s and o[1] <= f for o in measured)
    }
    assert best == expected
    assert len(found) == len(best)


@given(POINTS, st.integers(1, 9))
def test_the_choice_is_the_best_within_the_budget(points, budget):
    within = [(f, s) for s, f in points if f is not None and s <= budget]
    if not within:
        with pytest.raises(UserError, match="the quickest of the"):
            choose(tried(points), budget)
        return
    chosen = choose(tried(points), budget)
    assert (chosen.frechet, chosen.seconds_per_image) == min(within)


def test_lists_that_a_model_recommends_do_not_overrule_what_is_tried():
    """Else all that is measured would be the same, under different names."""
    own = SampleConfig(sampler="ddim", sizes=[20, 12], respacing="ddim20", given_order=[1, 0])
    sweep = Sweep(samplers=["ddim"], diffusion_steps=[4], ar_steps=[1, 4], guidance_scales=[1.0])
    found = sweep.settings(own, MODEL)
    assert [(s.num_ar_steps, s.sizes, s.respacing) for s in found] == [(1, [], ""), (4, [], "")]
    assert all(s.given_order == own.given_order for s in found), "which no setting that is tried overrules"
    assert [s.sizes for s in sweep.settings_of_other(own, MODEL, 32)] == [[], []]
    options = Tried(settings=found[1], seconds_per_image=1.0).as_options(own)
    assert options.startswith("--sampler ddim --num-ar-steps 4 --diffusion-steps 1 --guidance-scale 1")
    assert own.changed(num_ar_steps=2, sizes=[31, 1]).sizes == [31, 1]


def test_diffusion_steps_are_shared_among_the_ar_steps():
    sweep = Sweep(samplers=["ddim"], diffusion_steps=[2, 10], ar_steps=[1, 4, 32], guidance_scales=[1.0])
    found = [(s.num_ar_steps, s.diffusion_steps) for s in sweep.settings(SampleConfig(), MODEL)]
    assert found == [(1, [2]), (1, [10]), (4, [3, 3, 2, 2])]


def test_the_options_that_are_told_draw_what_was_measured():
    """On top of what the model recommends, as `sample` takes them."""
    settings = SampleConfig(sampler="unipc", diffusion_steps=[3, 2], num_ar_steps=2, guidance_interval=(0, 1))
    own = replace(settings, order="raster", guidance_interval=(0.1, 0.9), guidance_schedule="linear")
    found = Tried(settings=settings, seconds_per_image=1.0)
    main = "--sampler unipc --num-ar-steps 2 --diffusion-steps 3 2 --guidance-scale 1"
    assert found.as_options(settings) == main
    told = found.as_options(own).removeprefix(main).split(" --")
    assert told == ["", "order random"], "without guidance, sample refuses options of it"
    guided = replace(found, settings=replace(settings, guidance_scale=2.0))
    told = guided.as_options(own).split(" --")
    assert sorted(told[4:]) == ["guidance-interval 0 1", "guidance-schedule constant", "order random"]
    student = replace(guided, model="student")
    assert student.as_options(replace(own, guidance_interval=(0, 1), guidance_schedule="constant")) == (
        "--num-ar-steps 2 --order random --guidance-scale 2"
    )
    assert found.as_options(replace(settings, respacing="10")) == main, "which --diffusion-steps overrules"
    rarer = replace(found, settings=replace(settings, solver_order=3, level_shift=1.5))
    assert rarer.as_options(SampleConfig()) == f"{main} --solver-order 3 --level-shift 1.5"


def test_a_per_token_head_has_all_diffusion_steps_in_each_ar_step():
    sweep = Sweep(samplers=["ddim"], diffusion_steps=[2], ar_steps=[1, 4], guidance_scales=[1.0])
    for ask, expected in (("mask", [(1, [2]), (4, [2])]), ("previous", [(16, [2])])):
        head = HeadConfig(kind="per_token", ask=ask)  # pyright: ignore[reportArgumentType]
        found = sweep.settings(SampleConfig(), replace(MODEL, head=head))
        assert [(s.num_ar_steps, s.diffusion_steps) for s in found] == expected
        assert {s.order for s in found} == {"random" if ask == "mask" else "raster"}


@pytest.mark.parametrize(("text", "seconds"), [("200ms", 0.2), ("0.5s", 0.5), ("2 min", 120), ("9us", 9e-6)])
def test_times(text, seconds):
    assert read_time(text) == pytest.approx(seconds)
    assert read_time(in_time(seconds).replace("min", "s")) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["200", "-1s", "0ms", "fast", "1h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="such as 200ms"):
        read_time(text)
