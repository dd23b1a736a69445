"""The parts of the path and the jumps in them, against samplers and closed forms."""

import pytest
import torch

from causalfusion.config import DiffusionConfig
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.segments import Segments, few_steps
from causalfusion.errors import UserError

CHAIN = DiffusionConfig(prediction_type="v_prediction")
STRAIGHT = DiffusionConfig(path="rectified_flow", prediction_type="velocity")
CURVED = DiffusionConfig(path="gvp", prediction_type="velocity")
PATHS = [CHAIN, STRAIGHT, CURVED]


@pytest.mark.parametrize("config", PATHS, ids=lambda c: c.path)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_part_begins_where_the_sampler_asks_the_model(config, count):
    process = make_process(config)
    sampler = process.sampler(few_steps(process, count), count)
    segments = Segments.of(process, count, 5)
    starts = segments.levels.flip(0)[::5]
    assert len(sampler.timesteps) == count and len(segments.levels) == 5 * count
    torch.testing.assert_close(process.timesteps(starts).double(), torch.tensor(sampler.timesteps).double())
    assert process.shares(starts[:1]) >= 0.998, "the first is pure noise"


@pytest.mark.parametrize("config", PATHS, ids=lambda c: c.path)
def test_a_jump_from_start_to_end_is_the_samplers_step(config):
    process, count = make_process(config), 3
    sampler = process.sampler(few_steps(process, count), count)
    segments = Segments.of(process, count, 4)
    x, prediction = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    for index, place in enumerate((12, 8, 4)):
        places = torch.full((2, 1), place)
        clean = process.to_clean(prediction, x, segments.at(places))
        ours = segments.jump(x, clean, places, segments.end_of(places))
        tolerance = 2e-3 if config is CURVED else 1e-6  # a solver's logarithm is cut near pure noise
        torch.testing.assert_close(
            ours, sampler.step(index, x, prediction, None), atol=tolerance, rtol=tolerance
        )
        x = ours


def test_levels_move_up_within_their_part():
    segments = Segments.of(make_process(CHAIN), 2, 2)
    assert segments.levels.tolist() == [250, 500, 750, 999]
    assert segments.upwards(torch.tensor([0, 250, 251, 998])).tolist() == [250, 250, 500, 999]
    places = torch.tensor([1, 2, 3, 4])
    assert segments.places(segments.levels).equal(places)
    assert segments.end_of(places).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("config", PATHS, ids=lambda c: c.path)
def test_two_jumps_are_one_with_the_mean_of_both(config):
    """In every case: to clean data, to another level, and with a first jump that goes all the way."""
    segments = Segments.of(make_process(config), 2, 3)
    x, first, second = torch.randn(3, 6, 1, 4, dtype=torch.float64)
    start = torch.tensor([3, 2, 1, 6, 5, 4])[:, None]
    between, stop = start - 1, segments.end_of(start)
    middle = segments.jump(x, first, start, between)
    landed = segments.jump(middle, second, between.clamp(min=1), stop)
    landed = torch.where((between == stop)[:, :, None], middle, landed)
    share = segments.share(start, between, stop)[:, :, None]
    torch.testing.assert_close(segments.by_one_jump(x, middle, start, between), first)
    torch.testing.assert_close(segments.jump(x, share * first + (1 - share) * second, start, stop), landed)
    assert share[:3, 0, 0].tolist() == [0, 0, 1], "next to clean data, the last prediction is what counts"


def test_more_points_than_levels_are_refused():
    Segments.of(make_process(CHAIN), 4, 249)
    with pytest.raises(UserError, match=r"teacher_steps is 251; expected at most 249"):
        Segments.of(make_process(CHAIN), 4, 251)
