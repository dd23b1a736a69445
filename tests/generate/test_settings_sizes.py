"""Numbers of tokens in AR steps."""

from causalfusion.config import SampleConfig
from causalfusion.generate.settings import step_sizes


def test_falling_sizes_are_growing_ones_backwards():
    growing, falling = (
        step_sizes(SampleConfig(num_ar_steps=4, step_sizes=name), 64, 0) for name in ("cosine", "falling")
    )
    assert growing == [5, 14, 21, 24] and falling == [24, 21, 14, 5]
