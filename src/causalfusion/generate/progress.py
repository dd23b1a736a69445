"""How far a generation is: images that are done, and of those in work the share of their steps."""

from __future__ import annotations

from causalfusion.generate.tokens import StepEvent
from causalfusion.machine.progress import ProgressLine


class BatchProgress:
    """Watches the steps of a batch of `size` images after `before` others. With several candidates, which are
    drawn one after another, an image is done when all of its draws are."""

    def __init__(self, line: ProgressLine, before: int, size: int, candidates: int = 1) -> None:
        self.line, self.before, self.size, self.candidates = line, before, size, candidates
        self.draws, self.share = 0, 0.0

    def __call__(self, event: StepEvent) -> None:
        share = (event.ar_step - 1 + event.diffusion_step / event.num_diffusion_steps) / event.num_ar_steps
        self.draws += share <= self.share  # steps begin anew: the next candidate
        self.share = share
        done = self.before + self.size * min((self.draws + share) / self.candidates, 1)
        of_draws = f"draw {self.draws + 1}/{self.candidates}, " if self.candidates > 1 else ""
        self.line.show(min(done, self.line.total), of_draws + describe(event))


def describe(event: StepEvent) -> str:
    """The AR step and the diffusion step in words."""
    return (
        f"AR step {event.ar_step}/{event.num_ar_steps}, "
        f"diffusion step {event.diffusion_step}/{event.num_diffusion_steps}"
    )
