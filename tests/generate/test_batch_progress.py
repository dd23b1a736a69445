"""How far a batch is, from the steps that are done."""

import pytest
import torch

from causalfusion.generate.progress import BatchProgress
from causalfusion.generate.tokens import StepEvent
from causalfusion.machine.progress import ProgressLine


class Line(ProgressLine):
    def show(self, done: float, text: str, **_: object) -> None:
        self.shown = [*getattr(self, "shown", []), (done, text)]


def steps(ar_steps: int, diffusion_steps: int) -> list[StepEvent]:
    none = torch.empty(0)
    return [
        StepEvent(s + 1, ar_steps, k + 1, diffusion_steps, 0.0, none, none)
        for s in range(ar_steps)
        for k in range(diffusion_steps)
    ]


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize(("ar_steps", "diffusion_steps"), [(1, 1), (1, 4), (2, 3)])
def test_every_step_is_an_equal_share_of_the_batch(candidates, ar_steps, diffusion_steps):
    line = Line(20, 0, enabled=False)
    watch = BatchProgress(line, 4, 6, candidates)
    of_a_draw = steps(ar_steps, diffusion_steps)
    for _ in range(candidates):
        for event in of_a_draw:
            watch(event)
    in_all = candidates * len(of_a_draw)
    assert [done for done, _ in line.shown] == pytest.approx(
        [4 + 6 * k / in_all for k in range(1, in_all + 1)]
    )
    assert line.shown[-1][1].startswith("draw 3/3, AR step" if candidates == 3 else "AR step")


def test_the_last_batch_of_several_processes_is_not_more_than_all():
    line = Line(10, 0, enabled=False)
    watch = BatchProgress(line, 8, 4)
    watch(steps(1, 1)[0])
    assert line.shown[-1][0] == 10
